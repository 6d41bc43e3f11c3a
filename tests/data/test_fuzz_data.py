"""Lists, clips and prepared folders out of order: an error that names the file, or a clip that is dropped."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayvideo.data.kinds import kind
from rayvideo.data.manifest import ManifestError, read_captioned, read_captions, read_manifest, scan_captions
from rayvideo.data.prepared import clip_places, fingerprint, open_prepared
from rayvideo.data.table import DataError, batch_indices
from rayvideo.data.tasks import tensor_array
from rayvideo.data.video import ClipError, read_clip, write_clip
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.storage import StorageError, locate, read_bytes, write_bytes
from tests.clips import ball

FORMS = ("list.txt", "list.csv", "list.jsonl", "list.json", "list.parquet", "list")
SIZE = {"frames": 4, "height": 64, "width": 64}
# What every form can say: one line, no separators, no blanks at the ends, which all forms take off.
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Zs"), exclude_characters='|"\ufeff')
)
names = st.text("abc/._-éß🐈", min_size=1, max_size=12)
entries = st.lists(st.tuples(names, words), min_size=1, max_size=6, unique=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


def save(folder: Path, form: str, pairs: list[tuple[str, str]], end: str = "\n", mark: bool = False) -> Path:
    path = folder / form
    if form.endswith(".parquet"):
        pq.write_table(pa.table({"video": [v for v, _ in pairs], "caption": [c for _, c in pairs]}), path)
        return path
    if form.endswith(".csv"):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=end).writerows([("video", "caption"), *pairs])
        content = text.getvalue()
    elif form.endswith(".json"):
        content = json.dumps([{"file_path": video, "text": caption} for video, caption in pairs], indent=1)
    elif form.endswith(".jsonl"):
        content = end.join(json.dumps({"video": video, "caption": caption}) for video, caption in pairs)
    else:
        content = end.join(f"{video}|||{caption}" for video, caption in pairs)
    path.write_bytes(content.encode("utf-8-sig" if mark else "utf-8"))
    return path


@settings(max_examples=20)
@given(entries, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_all_forms_say_the_same(folder: Path, pairs: list[tuple[str, str]], end: str, mark: bool) -> None:
    expected = [{"video": str(Path(folder, video)), "caption": caption} for video, caption in pairs]
    distinct = list({tuple(entry.values()): entry for entry in expected}.values())
    for form in FORMS:
        assert read_manifest(save(folder, form, pairs, end, mark)) == distinct, form


@given(st.sampled_from(FORMS), st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_list(folder: Path, form: str, content: bytes) -> None:
    (folder / form).write_bytes(content)
    for read in (read_manifest, read_captions, scan_captions):
        try:
            read(folder / form)
        except ManifestError as error:
            name_and_length(form, str(error))


def name_and_length(form: str, message: str) -> None:
    assert form in message
    assert len(message) < 2000


@settings(max_examples=60)
@given(
    st.sampled_from(["metadata.csv", "metadata.jsonl", "l.json"]), st.binary(max_size=200) | st.text().map(str.encode)
)
def test_any_list_in_a_folder(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    place = tmp_path_factory.mktemp("clips")
    (place / "a.mp4").touch()
    (place / name).write_bytes(content)
    try:
        assert read_manifest(place)
        read_captioned(place, None, 0)
    except ManifestError as error:
        name_and_length(str(place), str(error))


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8X", b"ID3", b"BM", b"\0\0\0\0ftypavif"]),
    st.binary(),
)
def test_a_file_is_named_by_any_first_bytes(start: bytes, rest: bytes) -> None:
    assert kind(start + rest) or not start or start == b"BM"


@given(st.data())
def test_a_damaged_parquet_list(folder: Path, data: st.DataObject) -> None:
    content = bytearray(save(folder, "list.parquet", [("a.mp4", "cat"), ("b.mp4", "dog")]).read_bytes())
    damaged(content, data)
    (folder / "list.parquet").write_bytes(content)
    try:
        read_manifest(folder / "list.parquet")
    except ManifestError as error:
        name_and_length("list.parquet", str(error))


def damaged(content: bytearray, data: st.DataObject) -> None:
    """Cut off, or with a few bytes changed, or with a number made as large as it can be."""
    place = st.integers(0, len(content) - 1)
    match data.draw(st.sampled_from(["cut", "flip", "huge"])):
        case "cut":
            del content[data.draw(place) :]
        case "flip":
            for where in data.draw(st.lists(place, min_size=1, max_size=8)):
                content[where] ^= data.draw(st.integers(1, 255))
        case "huge":
            where = data.draw(place)
            content[where : where + 4] = b"\x7f\xff\xff\xff"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.jsonl", '{"video": "a", "caption": ' + "[" * 100_000, "line 1: not JSON"),
        ("l.jsonl", '{"video": "a", "caption": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("l.jsonl", '{"video": "a", "caption": "b", "caption": "c"}', "line 1: .* key stands there twice"),
        ("l.jsonl", '{"video": "a\\u0000", "caption": "b"}', "line 1: .* is not text"),
        ("l.csv", "video,caption,caption\na,b,c", "caption stand in its header more than once"),
        ("l.txt", "a.mp4||||red cat", "line 1: more than"),
        ("l.txt", "x" * 1_000_000, "line 1: 1 fields in 'xxx"),
        ("l.txt.gz", "a.mp4|||a", "'.gz' is no known kind of list"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(tmp_path / name)
    assert len(str(error.value)) < 1000


def test_links_and_pipes_in_a_folder_of_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link to a file is a clip like others; one to a folder may go round; a pipe may be waited for without end."""
    write_clip(tmp_path / "clips" / "a.mp4", ball(1, 2))
    (tmp_path / "clips" / "b.mp4").symlink_to(tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "clips" / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "clips" / "pipe.mp4")
    assert [Path(entry["video"]).name for entry in read_manifest(tmp_path / "clips")] == ["a.mp4", "b.mp4"]
    assert "1 links to other folders are not followed" in caplog.text
    for path in (tmp_path / "clips" / "pipe.mp4", Path("/dev/zero"), tmp_path):
        with pytest.raises(ClipError, match="no regular file"):
            read_clip(path, 2, 8, 64, 64)
    with pytest.raises(ManifestError, match="no regular file"):
        read_manifest(tmp_path / "clips" / "pipe.mp4")
    with pytest.raises(ManifestError, match="is a folder"):
        read_captions(tmp_path)


def test_places_that_can_not_be(tmp_path: Path) -> None:
    for place in ("http://host/list.txt", "://", "a\0b", "\ud83d"):
        with pytest.raises(StorageError, match="neither a local path nor a URI"):
            locate(place)
        with pytest.raises(ClipError):
            read_clip(place, 2, 8, 64, 64)
    write_bytes(tmp_path / "a.gz", b"as it is")
    assert (tmp_path / "a.gz").read_bytes() == read_bytes(tmp_path / "a.gz") == b"as it is"


def test_clips_name_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would follow playlists by their content, and protocols by a file's name."""
    monkeypatch.chdir(tmp_path)
    write_clip("other.mp4", ball(1))
    Path("hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n")
    Path("concat.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    for path in ("hls.mp4", "concat.mp4", "concat:other.mp4|other.mp4", "subfile,,start,0,end,0,,:other.mp4", "pipe:0"):
        with pytest.raises(ClipError, match="unreadable"):
            read_clip(path, 2, 8, 64, 64)


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    write_clip(folder / "whole.mp4", ball(1))
    return (folder / "whole.mp4").read_bytes()


@settings(max_examples=80)
@given(st.data())
def test_a_damaged_clip_is_read_or_refused(folder: Path, whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    damaged(content, data)
    (folder / "clip.mp4").write_bytes(content)
    try:
        clip = read_clip(folder / "clip.mp4", 16, 8, 64, 64)
    except ClipError:
        return
    assert clip.shape == (16, 64, 64, 3)


def test_wherever_a_clip_is_cut_off_it_is_refused(folder: Path, whole: bytes) -> None:
    """But in its last 98 bytes, where it only says which program wrote it."""
    for end in [*range(0, len(whole) - 98, 97), len(whole) - 99]:
        (folder / "clip.mp4").write_bytes(whole[:end])
        with pytest.raises(ClipError):
            read_clip(folder / "clip.mp4", 16, 8, 64, 64)


def test_a_frame_that_is_a_line_is_not_blown_up(tmp_path: Path) -> None:
    write_clip(tmp_path / "line.mp4", np.zeros((2, 2, 4096, 3), np.uint8))
    with pytest.raises(ClipError, match="too long and thin for 64 x 64: 4096 x 2 pixels"):
        read_clip(tmp_path / "line.mp4", 2, 8, 64, 64)


@pytest.fixture
def recipe(tiny_pipeline: Path, tmp_path: Path) -> Recipe:
    """With a prepared folder of two clips, written without a cluster."""
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"prepared": str(tmp_path / "latents"), **SIZE},
        "reward": {"judges": [{"name": "judge"}]},
    }
    recipe = parse_recipe(tree)
    latents = tensor_array(np.zeros((2, 4, 4, 8, 8), np.float32))
    clips = {"id": [0, 1], "video": ["a", "b"], "caption": ["cat", "dog"], "mean": latents, "logvar": latents}
    embeddings = tensor_array(np.zeros((3, 48, 32), np.float32))
    (tmp_path / "latents" / "clips").mkdir(parents=True)
    pq.write_table(pa.table(clips), tmp_path / "latents" / "clips" / "0.parquet", row_group_size=1)
    captions = pa.table({"caption": ["", "cat", "dog"], "embedding": embeddings})
    pq.write_table(captions, tmp_path / "latents" / "captions.parquet", row_group_size=1)
    (tmp_path / "latents" / "rejected.jsonl").write_text('{"video": "c", "caption": "", "reason": "no caption"}\n')
    summary = {"finished": True, "fingerprint": fingerprint(recipe)}
    (tmp_path / "latents" / "summary.json").write_text(json.dumps(summary))
    return recipe


def test_damage_in_a_prepared_folder_is_named(recipe: Recipe, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    assert len(open_prepared(recipe)) == len(clip_places(str(latents))) == 2
    for file in ("summary.json", "rejected.jsonl", "captions.parquet", "clips/0.parquet"):
        content = (latents / file).read_bytes()
        for damage in (
            content[: len(content) // 2],
            b"",
            b"[1]\n",
            b"\xff\xfe",
            b'{"finished": true, "fingerprint": 3}',
        ):
            (latents / file).write_bytes(damage)
            if file == "rejected.jsonl" and not damage:
                continue  # nothing was rejected
            with pytest.raises(DataError, match="prepare into (a new|another) folder|not finished|holds no clips"):
                open_prepared(recipe)
        (latents / file).write_bytes(content)
    assert len(open_prepared(recipe)) == 2


def test_a_prepared_folder_without_a_clips_caption(recipe: Recipe, tmp_path: Path) -> None:
    captions = pq.read_table(tmp_path / "latents" / "captions.parquet").slice(0, 2)
    pq.write_table(captions, tmp_path / "latents" / "captions.parquet", row_group_size=1)
    with pytest.raises(DataError, match=r"captions\.parquet lacks 1 captions of its clips, such as 'dog'"):
        open_prepared(recipe)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_each_epoch_visits_every_clip_once_whatever_the_batch(clips: int, batch: int, seed: int) -> None:
    steps = 2 * clips  # whole epochs: 2 · batch of them
    walked = [index for step in range(steps) for index in batch_indices(clips, seed, step, batch)]
    assert len(walked) == steps * batch
    for epoch in range(2 * batch):
        assert sorted(walked[epoch * clips : (epoch + 1) * clips]) == list(range(clips))
    assert walked[: clips * 2] == [i for step in range(2 * clips) for i in batch_indices(clips, seed, step, 1)]
