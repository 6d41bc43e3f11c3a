"""Lists of clips and lists of captions, in every form that users bring.

Forms: the reference's text lists (`video|||caption` or `name|||caption|||16`), `.csv` and `.jsonl` and `.parquet` with
columns `video` and `caption`, and a folder of clips with a `.txt` of the same name beside each. Text is UTF-8; a byte
order mark, Windows line ends and blank lines do no harm. Anything else out of order is an error naming file and line.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from rayvideo.data.storage import join, locate, parent, read_bytes
from rayvideo.errors import UserError

log = logging.getLogger(__name__)

SEPARATOR = "|||"
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif")
FORMS = "a text list of video|||caption lines, .csv, .jsonl, .parquet, or a folder of clips with .txt files beside them"


class ManifestError(UserError):
    """A list that can't be read as one; the message names the file, the line and what is allowed."""


class Entry(TypedDict):
    """One clip and what it shows; an empty caption means that the list has none for it."""

    video: str
    caption: str


class Caption(NamedTuple):
    """One line of an evaluation list; `name` only names the output."""

    name: str
    caption: str


class _Row(NamedTuple):
    where: str
    first: str | None
    caption: str | None


def read_manifest(path: str | Path, root: str | None = None) -> list[Entry]:
    """The clips of a list, in its order; the same video with the same caption again is dropped with a warning.

    Args:
        path: Any of the forms above, local or a URI.
        root: Folder that relative video paths start from; default: the folder of the list.

    Raises:
        ManifestError: naming file, line and what is allowed.
    """
    source = str(path)
    filesystem, inner = _found(source)
    if filesystem.get_file_info(inner).type == pa.fs.FileType.Directory:
        if root is not None:
            raise ManifestError(f"{source} is a folder of clips, so data.root {root!r} has no meaning; leave it out")
        rows = _folder(source, filesystem, inner)
    else:
        rows = _rows(source, first="video")
        folder = parent(source) if root is None else root
        rows = (row._replace(first=join(folder, row.first)) if row.first else row for row in rows)
    entries = [Entry(video=first, caption=caption) for first, caption in _distinct(source, rows)]
    if not entries:
        raise ManifestError(f"{source} lists no clips; allowed: {FORMS}")
    return entries


def read_captions(path: str | Path) -> list[Caption]:
    """The captions of an evaluation list: `name|||caption|||16` lines, or one caption a line, or a table.

    In a `.csv`, `.jsonl` or `.parquet` the column `caption` is needed, `name` is not. Captions without a name are
    named by their number, "0000" first. The same name with the same caption again is dropped with a warning.

    Raises:
        ManifestError: naming file, line and what is allowed; also for an empty caption.
    """
    source = str(path)
    _found(source)
    rows = list(_rows(source, first="name"))
    for row in rows:
        if not row.caption:
            raise ManifestError(f"{row.where}: no caption")
    named = (row if row.first else row._replace(first=f"{number:04d}") for number, row in enumerate(rows))
    captions = [Caption(*pair) for pair in _distinct(source, named)]
    if not captions:
        raise ManifestError(f"{source} lists no captions")
    return captions


def _found(source: str) -> tuple[pa.fs.FileSystem, str]:
    filesystem, inner = locate(source)
    if filesystem.get_file_info(inner).type == pa.fs.FileType.NotFound:
        raise ManifestError(f"{source} does not exist; allowed: {FORMS}")
    return filesystem, inner


def _distinct(source: str, rows: Iterable[_Row]) -> Iterator[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    repeated: list[str] = []
    for row in rows:
        if not row.first:
            raise ManifestError(f"{row.where}: no video")
        pair = (row.first, row.caption or "")
        if pair in seen:
            repeated.append(row.where)
            continue
        seen.add(pair)
        yield pair
    if repeated:
        log.warning("%s: dropped %d repeated entries, the first at %s", source, len(repeated), repeated[0])


def _rows(source: str, first: str) -> Iterator[_Row]:
    """The rows of a list file; `first` is what its first column is called: "video" or "name"."""
    ending = Path(source).suffix.lower()
    if ending == ".parquet":
        return _parquet(source, first)
    try:
        # utf-8-sig drops a byte order mark; StringIO with newline=None knows all line ends.
        text = read_bytes(source).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{source} line {line}: not UTF-8 text; allowed: {FORMS}") from None
    lines = io.StringIO(text, newline=None)
    if ending == ".csv":
        return _csv(source, lines, first)
    if ending == ".jsonl":
        return _jsonl(source, lines, first)
    if ending in ("", ".txt", ".list"):
        return _text(source, lines, first)
    raise ManifestError(f"{source}: {ending!r} is no known kind of list; allowed: {FORMS}")


def _text(source: str, lines: Iterable[str], first: str) -> Iterator[_Row]:
    numbered = [(f"{source} line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    plain = first == "name" and not any(SEPARATOR in line for _, line in numbered)
    allowed = f"allowed: {first}{SEPARATOR}caption or {first}{SEPARATOR}caption{SEPARATOR}16"
    for where, line in numbered:
        if plain:
            yield _Row(where, None, line)
            continue
        fields = [field.strip() for field in line.split(SEPARATOR)]
        if len(fields) not in (2, 3):
            raise ManifestError(f"{where}: {len(fields)} fields in {line!r}; {allowed}")
        if not fields[0]:
            raise ManifestError(f"{where}: no {first} in {line!r}; {allowed}")
        if len(fields) == 3 and not fields[2].isdecimal():
            raise ManifestError(f"{where}: {fields[2]!r} is not a number of frames; {allowed}")
        yield _Row(where, fields[0], fields[1])


def _csv(source: str, lines: Iterable[str], first: str) -> Iterator[_Row]:
    reader = csv.DictReader(lines, strict=True)
    try:
        _need_columns(source, reader.fieldnames or [], first)
        for record in reader:
            where = f"{source} line {reader.line_num}"
            # DictReader files surplus fields under None and fills missing ones with None.
            if None in record or None in record.values():
                raise ManifestError(f"{where}: needs {len(reader.fieldnames or [])} fields, as its header has")
            yield _row(where, record, first)
    except csv.Error as error:
        raise ManifestError(f"{source} line {reader.line_num}: {error}") from None


def _jsonl(source: str, lines: Iterable[str], first: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{where}: not JSON ({error.msg}); allowed: one object a line") from None
        if not isinstance(record, dict):
            raise ManifestError(f"{where}: {line.strip()!r} is not an object with {first!r} and 'caption'")
        _need_columns(where, record, first)
        yield _row(where, record, first)


def _parquet(source: str, first: str) -> Iterator[_Row]:
    filesystem, inner = locate(source)
    try:
        names = pq.read_schema(inner, filesystem=filesystem).names
        _need_columns(source, names, first)
        table = pq.read_table(inner, filesystem=filesystem, columns=[n for n in (first, "caption") if n in names])
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{source}: not a Parquet file ({error})") from None
    for number, record in enumerate(table.to_pylist()):
        yield _row(f"{source} row {number}", record, first)


def _need_columns(where: str, found: Iterable[str], first: str) -> None:
    needed = ["caption"] if first == "name" else [first, "caption"]
    if missing := [name for name in needed if name not in found]:
        raise ManifestError(f"{where}: no {' and no '.join(missing)} among {list(found)}; needed: {', '.join(needed)}")


def _row(where: str, record: dict[str, object], first: str) -> _Row:
    values = [record.get(first), record["caption"]]
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{where}: {value!r} is not text")
    stripped = [value.strip() if isinstance(value, str) else None for value in values]
    return _Row(where, *stripped)


def _folder(source: str, filesystem: pa.fs.FileSystem, inner: str) -> Iterator[_Row]:
    """Every clip below the folder, sorted by path, captioned by the `.txt` of the same name."""
    files = sorted(f.path for f in filesystem.get_file_info(pa.fs.FileSelector(inner, recursive=True)) if f.is_file)
    texts = {file for file in files if file.endswith(".txt")}
    for file in files:
        if Path(file).suffix.lower() not in VIDEO_ENDINGS:
            continue
        video = join(source, file[len(inner) :].lstrip("/"))
        text = str(Path(file).with_suffix(".txt"))
        caption = ""
        if text in texts:
            try:
                with filesystem.open_input_stream(text) as stream:
                    caption = " ".join(stream.read().decode("utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise ManifestError(f"{text}: not UTF-8 text at byte {error.start}") from None
        yield _Row(video, video, caption)
