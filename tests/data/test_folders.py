"""Folders as users have them: which files are clips, where captions are found, what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvideo.data.containers import CONTAINERS, ENDINGS
from rayvideo.data.manifest import ManifestError, read_captioned, read_manifest


def lay(folder: Path, **contents: Any) -> Path:
    """Write files, text or bytes, by their paths."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def captions(folder: Path) -> dict[str, str]:
    return {str(Path(e["video"]).relative_to(folder)): e["caption"] for e in read_manifest(folder)}


CLIPS = {"a.mp4": b"", "deep/b.mov": b""}
EXPECTED = {"a.mp4": "red cat", "deep/b.mov": "dog, jumping"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", 'file_name,text\na.mp4,red cat\ndeep/b.mov,"dog, jumping"\n'),
        ("metadata.csv", b'\xef\xbb\xbffile_name,text\r\n./a.mp4,red cat\r\ndeep\\b.mov,"dog, jumping"\r\n'),
        ("METADATA.CSV", 'width,file_name,caption\n8,A.MP4,red cat\n8,deep/B.MOV,"dog, jumping"\n'),
        ("deep/list.csv", 'path,text\n../a.mp4,red cat\nb.mov,"dog, jumping"\n'),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "red cat"}\n{"text": "dog, jumping", "file_name": "deep/b.mov"}',
        ),
        (
            "any.json",
            '[{"file_path": "a.mp4", "text": "red cat"}, {"file_path": "deep/b.mov", "text": "dog, jumping"}]',
        ),
        ("x.json", '[{"video": "a.mp4", "caption": "red cat"}, {"path": "deep/b.mov", "prompt": "dog, jumping"}]'),
    ],
)
def test_lists_that_lie_in_the_folder(tmp_path, name, content):
    assert captions(lay(tmp_path, **CLIPS, **{name: content})) == EXPECTED


def test_a_parquet_list_and_whole_paths(tmp_path):
    table = pa.table({"file_name": [str(tmp_path / "a.mp4"), "deep/b.mov"], "text": list(EXPECTED.values())})
    pq.write_table(table, lay(tmp_path, **CLIPS) / "metadata.parquet")
    assert captions(tmp_path) == EXPECTED
    uri = read_manifest(f"file://{tmp_path}")
    assert [entry["video"] for entry in uri] == [f"file://{tmp_path}/a.mp4", f"file://{tmp_path}/deep/b.mov"]
    assert [entry["caption"] for entry in uri] == list(EXPECTED.values())


@pytest.mark.parametrize("name", ["prompts.txt", "prompt.txt", "Prompts.TXT"])
def test_videos_and_prompts_line_by_line(tmp_path, name):
    lay(tmp_path, **CLIPS, **{"videos.txt": "a.mp4\r\ndeep/b.mov\r\n", name: "red cat\ndog, jumping\n\n"})
    assert captions(tmp_path) == EXPECTED
    lay(tmp_path, **{name: "red cat"})
    with pytest.raises(ManifestError, match=r"videos\.txt has 2 lines and .* 1; they belong together"):
        read_manifest(tmp_path)


def test_the_same_columns_are_read_in_lists_that_are_named(tmp_path):
    lay(tmp_path, **{"l.csv": "file_name,text\na.mp4,x", "l.json": '[{"file_path": "deep\\\\b.mov", "text": "y"}]'})
    assert read_manifest(tmp_path / "l.csv") == [{"video": str(tmp_path / "a.mp4"), "caption": "x"}]
    assert read_manifest(tmp_path / "l.json") == [{"video": str(tmp_path / "deep/b.mov"), "caption": "y"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "l.json: not JSON"),
        ('{"a.mp4": "x"}', "is not a list of objects"),
        ('["a.mp4"]', "l.json entry 1: .* is not an object with 'video' and 'caption'"),
        ('[{"video": "a", "caption": "x"}, {"video": "b"}]', "l.json entry 2: no caption among"),
        ("[]", "lists no clips"),
    ],
)
def test_a_malformed_json_list_is_refused(tmp_path, content, words):
    with pytest.raises(ManifestError, match=words):
        read_manifest(lay(tmp_path, **{"l.json": content}) / "l.json")


def test_case_of_names_and_endings(tmp_path):
    """As cameras, Windows and old archives write them."""
    lay(tmp_path, **{"E.MP4": b"", "E.TXT": "e", "F.Mov": b"", "f.txt": "f", "g.avi": b"", "G.txt": "G", "g.txt": "g"})
    assert captions(tmp_path) == {"E.MP4": "e", "F.Mov": "f", "g.avi": "g"}


def test_clips_of_one_name_share_their_text(tmp_path):
    assert captions(lay(tmp_path, **{"E.mp4": b"", "E.mov": b"", "E.txt": "e"})) == {"E.mov": "e", "E.mp4": "e"}


def test_what_others_leave_behind_is_passed_over(tmp_path):
    hidden = (".DS_Store", "._a.mp4", ".b.mp4", "__MACOSX/a.mp4", "__MACOSX/._a.txt", ".cache/c.mp4", "Thumbs.db")
    lay(tmp_path, **{"a.mp4": b"", "a.txt": "a", "._a.txt": b"\0\5\x16\7", **dict.fromkeys(hidden, b"\0")})
    (tmp_path / ".links").symlink_to(tmp_path)
    assert captions(tmp_path) == {"a.mp4": "a"}
    home = lay(tmp_path / ".home", **{"a.mp4": b"", "a.txt": "b"})  # but a folder that is named may be hidden
    assert captions(home) == {"a.mp4": "b"}


def test_every_ending_is_listed(tmp_path):
    lay(tmp_path, **{f"clip{ending}".upper(): b"" for ending in ENDINGS}, **{"clip.png": b"", "clip.webp": b""})
    assert len(captions(tmp_path)) == len(set(ENDINGS)) == sum(map(len, CONTAINERS.values()))


def test_the_text_beside_a_clip_comes_before_lists(tmp_path):
    lay(
        tmp_path,
        **CLIPS,
        **{"a.txt": "beside", "metadata.csv": "file_name,text\na.mp4,listed\ndeep/b.mov,dog\ngone.mp4,x"},
    )
    assert captions(tmp_path) == {"a.mp4": "beside", "deep/b.mov": "dog", "gone.mp4": "x"}


def test_clips_that_a_list_names_but_that_are_not_there_are_counted(tmp_path, caplog):
    lay(tmp_path, **{"a.mp4": b"", "list/m.csv": "file_name,text\n../a.mp4,a\nb.mp4,b\n/x/c.mp4,c\ns3://d/d.mp4,d"})
    listed = {entry["video"]: entry["caption"] for entry in read_manifest(tmp_path)}
    assert listed == {f"{tmp_path}/a.mp4": "a", f"{tmp_path}/list/b.mp4": "b", "/x/c.mp4": "c", "s3://d/d.mp4": "d"}
    assert "3 clips of list/m.csv are not there, the first is list/b.mp4" in caplog.text


def test_a_list_is_not_opened_where_every_clip_has_its_text(tmp_path):
    lay(tmp_path, **{"a.mp4": b"", "a.txt": "a", "metadata.csv": b"file_name,text\n\xff"})
    assert captions(tmp_path) == {"a.mp4": "a"}


def test_several_captions_of_one_clip_in_a_list(tmp_path):
    lay(tmp_path, **{"a.mp4": b"", "metadata.csv": "file_name,text\na.mp4,one\na.mp4,two\na.mp4,one"})
    assert [entry["caption"] for entry in read_manifest(tmp_path)] == ["one", "two"]


def test_two_lists_of_the_same_clips_are_refused(tmp_path):
    lay(
        tmp_path,
        **CLIPS,
        **{"metadata.csv": "file_name,text\na.mp4,x", "other.jsonl": '{"path": "a.mp4", "text": "y"}'},
    )
    with pytest.raises(ManifestError, match=r"both metadata.csv and other.jsonl list a.mp4; name the list"):
        read_manifest(tmp_path)


def test_a_bad_line_of_a_list_in_a_folder_is_named(tmp_path):
    lay(tmp_path, **CLIPS, **{"metadata.csv": "file_name,text\na.mp4,x\nb"})
    with pytest.raises(ManifestError, match=r"metadata\.csv line 3: needs 2 fields"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({}, "2 of 2 clips have no caption, such as .*a.mp4; .*put a .txt of the same name"),
        ({"labels.csv": "id,label\n1,2"}, "labels.csv is not read: .*no video and no caption among"),
        ({"list.txt": "a.mp4|||x"}, "list.txt is not read: name it as data.manifest"),
        ({"videos.txt": "a.mp4"}, "videos.txt is not read: videos.txt and prompts.txt belong together"),
        ({"prompts.txt": "a.mp4"}, "prompts.txt is not read: videos.txt and prompts.txt belong together"),
        ({"../metadata.csv": "file_name,text\nclips/a.mp4,x"}, "metadata.csv is not read: name it as data.manifest"),
    ],
)
def test_a_folder_without_captions_is_refused_and_the_list_beside_it_named(tmp_path, contents, words):
    lay(tmp_path / "clips", **CLIPS, **contents)
    for allowed in (0.05, 1):
        with pytest.raises(ManifestError, match=words):
            read_captioned(tmp_path / "clips", None, allowed)


def test_too_many_clips_without_a_caption(tmp_path):
    lay(tmp_path, **CLIPS, **{"a.txt": "a"})
    assert len(read_captioned(tmp_path, None, 0.5)) == 2
    with pytest.raises(
        ManifestError, match="1 of 2 clips have no caption, such as .*b.mov; data.max_bad_fraction allows 0.4"
    ):
        read_captioned(tmp_path, None, 0.4)
    lay(tmp_path, **{"l.jsonl": "\n".join(json.dumps({"video": v, "caption": ""}) for v in CLIPS)})
    with pytest.raises(ManifestError, match=r"l.jsonl: 2 of 2 clips have no caption"):
        read_captioned(tmp_path / "l.jsonl", None, 1)


def test_a_folder_without_clips_says_what_it_holds(tmp_path):
    lay(tmp_path, **{"a.webp": b"", "b.webp": b"", "c.png": b"", "readme": b""})
    with pytest.raises(ManifestError, match=r"lists no clips; the endings of its files: \.webp \(2\), \.png \(1\)"):
        read_manifest(tmp_path)
