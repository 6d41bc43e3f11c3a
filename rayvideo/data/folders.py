"""Folders of clips: which files are clips, and where their captions stand.

A clip's caption is in the `.txt` of the same name beside it. Where that is missing, lists in the folder are asked:
`.csv`, `.json`, `.jsonl` and `.parquet` files with columns for clips and captions, and `videos.txt` with `prompts.txt`,
line by line. Paths in a list start from the list's own folder.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from rayvideo.data.containers import is_clip_name
from rayvideo.data.lists import CLIPS, ManifestError, Row, clip_path, decoded, rows
from rayvideo.storage import is_uri, join, locate

Place = tuple[pa.fs.FileSystem, str]  # a folder: the filesystem that it is on and its path there, as `locate` says

log = logging.getLogger(__name__)

# What unpackers, file browsers and network storages leave in folders. It is passed over, as are names that begin with a
# dot.
LEFTOVERS = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")
TABLES = (".csv", ".json", ".jsonl", ".parquet")
PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")
LISTS_SHOWN = 3


class _Names:
    """Files by name. If there is none of exactly that name, one that differs in upper and lower case only is found."""

    def __init__(self, files: dict[str, str]) -> None:
        self._exact = files
        self._folded = {name.casefold(): file for name, file in reversed(files.items())}

    def find(self, name: str) -> str | None:
        return self._exact.get(name) or self._folded.get(name.casefold())


def clips(source: str) -> Iterator[Row]:
    """The clips below a folder, sorted by path, each with its caption, "" where there is none.

    A list may name clips that are not there; these are given too, so that they are counted.

    Raises:
        ManifestError: the folder holds no clips and no list of such, or one of its files can't be read.
    """
    place = locate(source)
    files = _files(source, *place)
    found = list(filter(is_clip_name, files))
    texts = _Names({_stem(file): file for file in files if file.lower().endswith(".txt")})
    captions: dict[str, list[str]] = {}
    for file in found:
        text = texts.find(_stem(file))
        captions[file] = [" ".join(_text(source, place, text).split())] if text else []
    if not (captions and all(captions.values())):
        for file, caption in _listed(source, place, files, _Names({file: file for file in found})):
            # A .txt beside a clip counts more than a list.
            if not (file in captions and texts.find(_stem(file))):
                captions.setdefault(file, []).append(caption)
    if not captions:
        kinds = Counter(posixpath.splitext(file)[1].lower() or "no ending" for file in files)
        held = ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common(5)) or "none"
        raise ManifestError(f"{source} lists no clips; the endings of its files: {held}; allowed: docs/clips.md")
    for file, each in sorted(captions.items()):
        video = join(source, file)
        for caption in each or [""]:
            yield Row(video, video, caption)


def unread_lists(source: str) -> list[str]:
    """Lines on the first few files that may hold captions of a folder's clips: why each was not read."""
    return [f"{place} is not read: {reason}" for place, reason in islice(_unread(source), LISTS_SHOWN)]


def _unread(source: str) -> Iterator[tuple[str, str]]:
    """Files beside or above the clips, and why they are not read."""
    files = _files(source, *locate(source))
    for table in _tables(files):
        if reason := _unfit(join(source, table)):
            yield table, reason
    for file in _without_clip(files, (".txt", ".list", ".tsv", ".xlsx")):
        name = posixpath.basename(file).lower()
        if name not in ("videos.txt", *PROMPTS):
            yield file, "name it as data.manifest if it is a list"
        elif not _prompts(file, files) or not any(each.lower().endswith("videos.txt") for each in files):
            yield file, f"videos.txt and {PROMPTS[0]} belong together, line by line"
    if is_uri(source):
        return
    with suppress(OSError):  # a folder above that this user may not list has nothing to tell
        above = Path(source).absolute().parent
        for name in sorted(os.listdir(above)):
            if name.lower().endswith((*TABLES, ".txt")) and not _passed_over(name):
                yield str(above / name), "name it as data.manifest if it is their list"


def _listed(source: str, place: Place, files: list[str], found: _Names) -> Iterator[tuple[str, str]]:
    """The clips that lists in the folder name, with their captions; paths start from `source` if they lie in it."""
    lists = {table: rows(join(source, table), CLIPS) for table in _tables(files) if not _unfit(join(source, table))}
    for file in files:
        if posixpath.basename(file).lower() == "videos.txt":
            lists[file] = _line_by_line(source, place, file, files)
    listed_by: dict[str, str] = {}  # clip -> its list; two lists of the same clip may disagree, and are refused
    for name, entries in lists.items():
        missing = []
        for row in entries:
            if row.bad:
                raise ManifestError(row.bad.reason)
            if not row.first:
                raise ManifestError(f"{row.where}: no video")
            path = join(posixpath.dirname(name), clip_path(row.first))
            clip = found.find(_from_source(source, place, path))
            if clip is None:
                clip = path
                missing.append(path)
            other = listed_by.setdefault(clip, name)
            if other != name:
                raise ManifestError(
                    f"{source}: both {other} and {name} list {clip}; name the list that is meant as data.manifest"
                )
            yield clip, row.caption or ""
        if missing:
            log.warning("%s: %d clips of %s are not there, the first is %s", source, len(missing), name, missing[0])


def _from_source(source: str, place: Place, path: str) -> str:
    """A path in a list, made relative to the folder `source` if it lies in it."""
    if is_uri(path):
        return path.removeprefix(f"{source.rstrip('/')}/")
    return posixpath.normpath(path).removeprefix(f"{place[1]}/")


def _line_by_line(source: str, place: Place, videos: str, files: list[str]) -> Iterator[Row]:
    """The rows of a videos.txt and of the file of captions beside it, line by line; none if there is no such file."""
    prompts = _prompts(videos, files)
    if prompts is None:
        return
    left, right = (list(io.StringIO(_text(source, place, file).rstrip(), newline=None)) for file in (videos, prompts))
    if len(left) != len(right):
        raise ManifestError(
            f"{join(source, videos)} has {len(left)} lines and {prompts} {len(right)}; they belong together, line by "
            "line"
        )
    for number, (video, caption) in enumerate(zip(left, right, strict=True), 1):
        if video.strip() or caption.strip():
            yield Row(f"{join(source, videos)} line {number}", video.strip(), caption.strip())


def _prompts(videos: str, files: list[str]) -> str | None:
    """The file of captions beside a videos.txt, None if there is none."""
    folder = posixpath.dirname(videos)
    beside = {file.lower(): file for file in files if posixpath.dirname(file) == folder}
    names = (posixpath.join(folder, name).lower() for name in PROMPTS)
    return next((beside[name] for name in names if name in beside), None)


def _tables(files: list[str]) -> list[str]:
    return _without_clip(files, TABLES)


def _without_clip(files: list[str], endings: tuple[str, ...]) -> list[str]:
    """Files with these endings, without those that belong to one clip, beside it and named like it."""
    owned = {_stem(file).casefold() for file in files if is_clip_name(file)}
    return [file for file in files if file.lower().endswith(endings) and _stem(file).casefold() not in owned]


def _unfit(place: str) -> str | None:
    """Why a table is no list of clips, if so, by its first entry: a folder may hold other tables as well."""
    try:
        first = next(rows(place, CLIPS), None)
    except ManifestError as error:
        return str(error)
    return first.bad.reason if first and first.bad else None


def _files(source: str, filesystem: pa.fs.FileSystem, inner: str) -> list[str]:
    """Regular files below a folder, and links to such, as paths from there, sorted; `_passed_over` ones are left out.

    Links to folders are not followed, because they may lead in a circle.

    Raises:
        ManifestError: a folder that may not be read, or a name that is no text.
    """
    try:
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            found = list(_local_files(source, inner))
        else:
            found = [
                file.path
                for file in filesystem.get_file_info(pa.fs.FileSelector(inner, recursive=True))
                if file.is_file
            ]
        names = [file[len(inner) :].lstrip("/") for file in found]
        for name in names:
            name.encode()
    except (OSError, UnicodeError) as error:
        raise ManifestError(f"{source}: its files can't be listed: {error}") from error
    return sorted(name for name in names if not any(map(_passed_over, name.split("/"))))


def _local_files(source: str, inner: str) -> Iterator[str]:
    links = []
    for folder, folders, names in os.walk(inner, onerror=_refuse):
        folders[:] = [name for name in folders if not _passed_over(name)]
        links += [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
        yield from (path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path))
    if links:
        log.warning("%s: %d links to other folders are not followed, the first is %s", source, len(links), links[0])


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFTOVERS


def _refuse(error: OSError) -> None:
    raise error


def _stem(file: str) -> str:
    return posixpath.splitext(file)[0]


def _text(source: str, place: Place, file: str) -> str:
    """The text of a file of the folder.

    Not by `read_bytes`, which would open the filesystem anew: an object store is asked for its region each time.
    """
    filesystem, inner = place
    try:
        with filesystem.open_input_stream(posixpath.join(inner, file), compression=None) as stream:
            return decoded(join(source, file), stream.read())
    except OSError as error:
        raise ManifestError(f"{join(source, file)} can't be read: {error}") from error
