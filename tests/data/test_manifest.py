"""Lists of clips and captions in all their forms, and what is said when they are out of order."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvideo.data.manifest import Caption, ManifestError, read_captions, read_manifest, scan_captions

REFERENCE = Path(__file__).parents[3] / "shared/data/captions"
EXPECTED = [("cat.mp4", "red cat"), ("dogs/dog.webm", "dog, jumping")]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs(entries, folder) -> list[tuple[str, str]]:
    return [(str(Path(e["video"]).relative_to(folder)), e["caption"]) for e in entries]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "cat.mp4|||red cat\ndogs/dog.webm|||dog, jumping"),
        ("list.txt", "cat.mp4|||red cat|||16\ndogs/dog.webm|||dog, jumping|||16\n"),
        ("list", "\n cat.mp4 ||| red cat \n\n\ndogs/dog.webm|||dog, jumping\n"),
        ("list.txt", b"\xef\xbb\xbfcat.mp4|||red cat\r\ndogs/dog.webm|||dog, jumping\r\n"),
        ("list.txt", b"\xef\xbb\xbfcat.mp4|||red cat\r\xef\xbb\xbfdogs/dog.webm|||dog, jumping"),  # two lists, joined
        ("list.csv", 'video,caption\ncat.mp4,red cat\ndogs/dog.webm,"dog, jumping"\n'),
        ("list.CSV", b'\xef\xbb\xbfcaption,extra,video\r\nred cat,1,cat.mp4\r\n"dog, jumping",2,dogs/dog.webm\r\n'),
        (
            "list.jsonl",
            '{"video": "cat.mp4", "caption": "red cat"}\n\n{"caption": "dog, jumping", "video": "dogs/dog.webm"}',
        ),
    ],
)
def test_text_forms(tmp_path, name, content):
    assert pairs(read_manifest(write(tmp_path, name, content)), tmp_path) == EXPECTED


def test_parquet(tmp_path):
    table = pa.table({"n": [1, 2], "video": [v for v, _ in EXPECTED], "caption": [c for _, c in EXPECTED]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert pairs(read_manifest(tmp_path / "list.parquet"), tmp_path) == EXPECTED


def test_folder_takes_captions_from_the_text_beside_each_clip(tmp_path):
    (tmp_path / "dogs").mkdir()
    for name in ("cat.mp4", "dogs/dog.webm", "none.MOV", "notes.md", "alone.txt"):
        (tmp_path / name).touch()
    write(tmp_path, "cat.txt", b"\xef\xbb\xbfred\r\ncat\r\n")
    write(tmp_path, "dogs/dog.txt", "dog, jumping")
    assert pairs(read_manifest(tmp_path), tmp_path) == [*EXPECTED, ("none.MOV", "")]


def test_paths_start_from_root_unless_absolute(tmp_path):
    path = write(tmp_path, "list.txt", "a.mp4|||a\n/b/b.mp4|||b\ns3://c/c.mp4|||c")
    videos = [entry["video"] for entry in read_manifest(path, root="/clips")]
    assert videos == ["/clips/a.mp4", "/b/b.mp4", "s3://c/c.mp4"]
    assert read_manifest(path, root="s3://clips/")[0]["video"] == "s3://clips/a.mp4"


def test_uri(tmp_path):
    path = write(tmp_path, "list.txt", "a.mp4|||a")
    assert read_manifest(f"file://{path}") == [{"video": f"file://{tmp_path}/a.mp4", "caption": "a"}]


def test_missing_captions_stay_empty(tmp_path):
    rows = '{"video": "a.mp4", "caption": null}\n{"video": "b.mp4", "caption": " "}'
    for name, content in (
        ("l.txt", "a.mp4|||\nb.mp4||| "),
        ("l.csv", "video,caption\na.mp4,\nb.mp4, "),
        ("l.jsonl", rows),
    ):
        assert [entry["caption"] for entry in read_manifest(write(tmp_path, name, content))] == ["", ""]


def test_repeated_entries_are_dropped_and_counted(tmp_path, caplog):
    path = write(tmp_path, "list.txt", "a.mp4|||a\na.mp4|||another\na.mp4|||a\na.mp4|||a")
    with caplog.at_level(logging.WARNING):
        assert [entry["caption"] for entry in read_manifest(path)] == ["a", "another"]
    assert "dropped 2 repeated entries, the first at" in caplog.text
    assert "line 3" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.txt", "a.mp4|||a\nb.mp4, b", ("l.txt line 2", "1 fields", "video|||caption")),
        ("l.txt", "\r\na.mp4|||a|||16|||x", ("l.txt line 2", "4 fields")),
        ("l.txt", "a.mp4|||a|||sixteen", ("l.txt line 1", "'sixteen' is not a number")),
        ("l.txt", "|||a", ("l.txt line 1", "no video")),
        ("l.txt", "", ("l.txt lists no clips", "allowed")),
        ("l.txt", b"a.mp4|||a\nb.mp4|||\xff", ("l.txt line 2: not UTF-8 text",)),
        ("l.txt", "a.mp4|||a".encode("utf-16"), ("l.txt line 1: not UTF-8 text",)),
        ("l.txt", "a.mp4|||a".encode("utf-16-le"), ("l.txt: zero bytes, as UTF-16",)),
        ("l.csv", "video;caption\na.mp4;a", ("l.csv", "no video and no caption among ['video;caption']")),
        ("l.csv", "file,caption\na.mp4,a", ("l.csv", "no video among", "needed: video, caption")),
        ("l.csv", "video,caption\na.mp4,a\nb.mp4", ("l.csv line 3", "needs 2 fields")),
        ("l.csv", "video,caption\na.mp4,a,b", ("l.csv line 2", "needs 2 fields")),
        ("l.csv", 'video,caption\n"a.mp4,a\n', ("l.csv line", "unexpected end")),
        ("l.csv", "video,caption\n,a", ("l.csv line 2", "no video")),
        ("l.jsonl", '{"video": "a.mp4", "caption": "a"}\n{video}', ("l.jsonl line 2", "not JSON")),
        ("l.jsonl", '["a.mp4"]', ("l.jsonl line 1", "not an object")),
        ("l.jsonl", '{"video": "a.mp4"}', ("l.jsonl line 1", "no caption")),
        ("l.jsonl", '{"video": "a.mp4", "caption": 3}', ("l.jsonl line 1", "3 is not text")),
        ("l.parquet", "video", ("l.parquet", "not a Parquet file")),
        ("l.xml", "<a>", ("'.xml' is no known kind of list", ".jsonl")),
    ],
)
def test_a_malformed_list_is_refused_by_file_and_line(tmp_path, name, content, words):
    with pytest.raises(ManifestError) as error:
        read_manifest(write(tmp_path, name, content))
    assert all(word in str(error.value) for word in words), error.value


def test_a_missing_list_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(tmp_path / "nowhere.txt")
    with pytest.raises(ManifestError, match="lists no clips"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="data.root"):
        read_manifest(tmp_path, root="/clips")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "a.mp4|||red cat|||16\nb.mp4|||a dog|||16", [("a.mp4", "red cat"), ("b.mp4", "a dog")]),
        ("c.txt", b"\xef\xbb\xbfred cat\r\n\r\na dog", [("0000", "red cat"), ("0001", "a dog")]),
        ("c.csv", "caption\nred cat\na dog", [("0000", "red cat"), ("0001", "a dog")]),
        ("c.jsonl", '{"name": "x", "caption": "red cat"}', [("x", "red cat")]),
        ("c.json", '[{"name": "x", "caption": "red cat"}]', [("x", "red cat")]),
    ],
)
def test_caption_lists(tmp_path, name, content, expected):
    assert read_captions(write(tmp_path, name, content)) == [Caption(*pair) for pair in expected]


def test_caption_parquet_needs_no_names(tmp_path):
    pq.write_table(pa.table({"caption": ["red cat"]}), tmp_path / "c.parquet")
    assert read_captions(tmp_path / "c.parquet") == [Caption("0000", "red cat")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", "a.mp4|||red cat|||16\na dog", ("c.txt line 2", "name|||caption")),
        ("c.txt", "a.mp4||||||16", ("c.txt line 1", "no caption")),
        ("c.txt", "a.mp4||red cat\nb.mp4||a dog", ("c.txt line 1", "not with '|||'", "one caption a line")),
        ("c.txt", "a.mp4\tred cat", ("c.txt line 1", "not with '|||'")),
        ("c.txt", "red cat\nclips/a.MP4", ("c.txt line 2", "is a file name, not a caption")),
        ("c.csv", "name,text\na,b", ("no caption among",)),
        ("c.jsonl", '{"caption": "half an emoji: \\ud83d"}', ("c.jsonl line 1", "is not text")),
        ("c.txt", "\n", ("lists no captions",)),
    ],
)
def test_a_malformed_caption_list_is_refused(tmp_path, name, content, words):
    with pytest.raises(ManifestError) as error:
        read_captions(write(tmp_path, name, content))
    assert all(word in str(error.value) for word in words), error.value


def test_repeated_captions_are_dropped_and_counted(tmp_path, caplog):
    path = write(tmp_path, "c.txt", "a.mp4|||red cat|||16\r\nb.mp4|||red cat|||16\r\na.mp4|||red cat|||16\r\n")
    with caplog.at_level(logging.WARNING):
        assert read_captions(path) == [Caption("a.mp4", "red cat"), Caption("b.mp4", "red cat")]
    assert "c.txt: dropped 1 repeated entries" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        (
            "c.txt",
            "a|||red cat|||16\na dog\n\nb||| |||16\nc|||cow",
            [("a dog", "line 2: 1 fields"), ("b", "line 4: no c")],
        ),
        (
            "c.jsonl",
            '{"caption": "red cat"}\n{"caption": 3}\n{"text": "dog"}\ncow\n{"name": "c", "caption": "cow"}',
            [("3", "line 2: 3 is not text"), ('{"text": "dog"}', "line 3: no caption"), ("cow", "line 4: not JSON")],
        ),
        (
            "c.csv",
            "name,caption\na,red cat\nb,\nd\nc,cow",
            [("b", "line 3: no caption"), ("['d', None]", "line 4: needs 2")],
        ),
    ],
)
def test_a_scan_sets_bad_entries_aside(tmp_path, name, content, bad):
    captions, found = scan_captions(write(tmp_path, name, content))
    assert [caption.caption for caption in captions] == ["red cat", "cow"]
    assert captions[1].name == "c"
    assert [row.text for row in found] == [text for text, _ in bad]
    assert all(words in row.reason for row, (_, words) in zip(found, bad, strict=True)), found


def test_a_list_without_any_usable_caption_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"c\.txt line 1: no caption"):
        scan_captions(write(tmp_path, "c.txt", "a||||||16\nb||||||16"))


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference's lists are not part of the repository")
def test_the_reference_lists(caplog):
    clips = read_manifest(REFERENCE / "train_animals.txt", root="clips")
    assert len(clips) == 878
    assert "dropped 3 repeated entries" in caplog.text
    assert len({clip["caption"] for clip in clips}) == 450
    assert clips[0] == {"video": "clips/135751_135800/23726005_02_32.mp4", "caption": "cute cat"}
    sizes = {
        name: len(read_captions(REFERENCE / f"eval_{name}.txt"))
        for name in ("in_domain_animals", "new_animals", "non_animals")
    }
    assert sizes == {"in_domain_animals": 263, "new_animals": 22, "non_animals": 46}
