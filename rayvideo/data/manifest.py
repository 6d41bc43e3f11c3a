"""Lists of clips and lists of captions, in every form that users bring.

Forms: the reference's text lists (`video|||caption` or `name|||caption|||16`), `.csv` and `.jsonl` and `.parquet` with
columns `video` and `caption`, and a folder of clips with a `.txt` of the same name beside each. Text is UTF-8; a byte
order mark, Windows line ends and blank lines do no harm; repeated lines are dropped and counted. Anything else out of
order is an error naming file and line.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from rayvideo.data.storage import join, locate, parent, read_bytes
from rayvideo.errors import UserError

log = logging.getLogger(__name__)

SEPARATOR = "|||"
BYTE_ORDER_MARK = "\ufeff"
LONGEST_SHOWN = 200
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


class BadRow(NamedTuple):
    """An entry of a list that can't be used."""

    text: str
    """What stands there."""
    reason: str
    """Names file and line, and what is allowed."""


class _Row(NamedTuple):
    where: str
    first: str | None
    caption: str | None
    bad: BadRow | None = None


def read_manifest(path: str | Path, root: str | None = None) -> list[Entry]:
    """The clips of a list, in its order; the same video with the same caption again is dropped with a warning.

    Args:
        path: Any of the forms above, local or a URI.
        root: Folder that relative video paths start from; default: the folder of the list. Those that begin with `~`
            start from a home folder.

    Raises:
        ManifestError: naming file, line and what is allowed.
    """
    source = str(path)
    filesystem, inner, is_folder = _found(source)
    if is_folder:
        if root is not None:
            raise ManifestError(f"{source} is a folder of clips, so data.root {root!r} has no meaning; leave it out")
        rows = _folder(source, filesystem, inner)
    else:
        rows = _rows(source, first="video")
        folder = parent(source) if root is None else root
        # Not `paths.expand`: a name that only begins with ~ is a name, and one with $ is as good as any.
        rows = (row._replace(first=join(folder, os.path.expanduser(row.first))) if row.first else row for row in rows)
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
    captions, bad = scan_captions(path)
    if bad:
        raise ManifestError(bad[0].reason)
    distinct = list(dict.fromkeys(captions))
    if len(distinct) < len(captions):
        log.warning("%s: dropped %d repeated entries", path, len(captions) - len(distinct))
    return distinct


def scan_captions(path: str | Path) -> tuple[list[Caption], list[BadRow]]:
    """What `read_captions` reads, repeated entries included, and the entries that it would refuse.

    Raises:
        ManifestError: the list as a whole can't be read, or holds no usable caption.
    """
    source = str(path)
    *_, is_folder = _found(source)
    if is_folder:
        raise ManifestError(f"{source} is a folder; a list of captions is a .txt, .csv, .jsonl or .parquet file")
    captions, bad = [], []
    for number, row in enumerate(_rows(source, first="name")):
        if row.bad:
            bad.append(row.bad)
        elif not row.caption:
            bad.append(BadRow(row.first or "", f"{row.where}: no caption"))
        else:
            captions.append(Caption(row.first or f"{number:04d}", row.caption))
    if not captions:
        raise ManifestError(bad[0].reason if bad else f"{source} lists no captions")
    return captions, bad


def _found(source: str) -> tuple[pa.fs.FileSystem, str, bool]:
    """Where a list lies, and whether it is a folder."""
    if not source:
        raise ManifestError(f"no list of clips or captions is named; allowed: {FORMS}")
    filesystem, inner = locate(source)
    try:
        kind = filesystem.get_file_info(inner).type
    except OSError as error:
        raise ManifestError(f"{source} can't be looked at: {error}") from error
    if kind not in (pa.fs.FileType.File, pa.fs.FileType.Directory):
        raise ManifestError(f"{source} does not exist, or is no regular file; allowed: {FORMS}")
    return filesystem, inner, kind == pa.fs.FileType.Directory


def _distinct(source: str, rows: Iterable[_Row]) -> Iterator[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    repeated: list[str] = []
    for row in rows:
        if row.bad:
            raise ManifestError(row.bad.reason)
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
        # A mark may also stand inside, where lists were joined. StringIO with newline=None knows all line ends.
        text = read_bytes(source).decode("utf-8").replace(BYTE_ORDER_MARK, "")
    except OSError as error:
        raise ManifestError(f"{source} can't be read: {error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{source} line {line}: not UTF-8 text; allowed: {FORMS}") from None
    if "\0" in text:
        raise ManifestError(f"{source}: zero bytes, as UTF-16 has them; allowed: UTF-8 text, or .parquet by its name")
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
            yield _Row(where, None, line, _bad(where, line, _misread(line), f"{allowed}, or one caption a line"))
            continue
        fields = [field.strip() for field in line.split(SEPARATOR)]
        caption = fields[1] if len(fields) > 1 else None
        yield _Row(where, fields[0], caption, _bad(where, line, _misfit(fields, line, first), allowed))


def _bad(where: str, line: str, fault: str | None, allowed: str) -> BadRow | None:
    return BadRow(line, f"{where}: {fault}; {allowed}") if fault else None


def _misfit(fields: Sequence[str], line: str, first: str) -> str | None:
    """What is wrong with a line of fields."""
    if len(fields) not in (2, 3):
        return f"{len(fields)} fields in {_shown(line)}"
    if any(field.startswith("|") or field.endswith("|") for field in fields):
        return f"more than {SEPARATOR!r} between the fields of {_shown(line)}"
    if not fields[0]:
        return f"no {first} in {_shown(line)}"
    if len(fields) == 3 and not fields[2].isdecimal():
        return f"{_shown(fields[2])} is not a number of frames"
    return None


def _misread(line: str) -> str | None:
    """Why a line of captions can't be a caption: it comes from a list with other separators, or from one of clips."""
    if "||" in line or "\t" in line:
        return f"{_shown(line)} looks like fields, but not with {SEPARATOR!r} between them"
    if line.lower().endswith(VIDEO_ENDINGS):
        return f"{_shown(line)} is a file name, not a caption"
    return None


def _csv(source: str, lines: Iterable[str], first: str) -> Iterator[_Row]:
    reader = csv.DictReader(lines, strict=True)
    try:
        names = reader.fieldnames or []
        _need_columns(source, names, first)
        if twice := [name for name in (first, "caption") if names.count(name) > 1]:
            raise ManifestError(f"{source}: {' and '.join(twice)} stand in its header more than once")
        for record in reader:
            where = f"{source} line {reader.line_num}"
            # DictReader files surplus fields under None and fills missing ones with None.
            if None in record or None in record.values():
                reason = f"{where}: needs {len(names)} fields, as its header has"
                yield _Row(where, None, None, BadRow(str(list(record.values())), reason))
            else:
                yield _row(where, record, first)
    except csv.Error as error:
        raise ManifestError(f"{source} line {reader.line_num}: {error}") from None


def _jsonl(source: str, lines: Iterable[str], first: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        text = line.strip()
        try:
            record = json.loads(line, object_pairs_hook=_each_once)
            if not isinstance(record, dict):
                raise ManifestError(f"{where}: {_shown(text)} is not an object with {first!r} and 'caption'")
            _need_columns(where, record, first)
        except ManifestError as error:
            yield _Row(where, None, None, BadRow(text, str(error)))
        except (ValueError, RecursionError) as error:  # also numbers of 5000 digits and 1000 brackets
            yield _Row(where, None, None, BadRow(text, f"{where}: not JSON ({error}); allowed: one object a line"))
        else:
            yield _row(where, record, first)


def _each_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands there twice, among {[key for key, _ in pairs]}")
    return record


def _parquet(source: str, first: str) -> Iterator[_Row]:
    filesystem, inner = locate(source)
    try:
        names = pq.read_schema(inner, filesystem=filesystem).names
        _need_columns(source, names, first)
        table = pq.read_table(inner, filesystem=filesystem, columns=[n for n in (first, "caption") if n in names])
        records = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{source}: not a Parquet file, or a damaged one ({_shown(str(error))})") from None
    for number, record in enumerate(records):
        yield _row(f"{source} row {number}", record, first)


def _need_columns(where: str, found: Iterable[str], first: str) -> None:
    needed = ["caption"] if first == "name" else [first, "caption"]
    if missing := [name for name in needed if name not in found]:
        raise ManifestError(f"{where}: no {' and no '.join(missing)} among {list(found)}; needed: {', '.join(needed)}")


def _row(where: str, record: dict[str, object], first: str) -> _Row:
    values: list[str | None] = []
    for value in (record.get(first), record["caption"]):
        if not (value is None or (isinstance(value, str) and _is_text(value))):
            return _Row(where, None, None, BadRow(_shown(value), f"{where}: {_shown(value)} is not text"))
        values.append(value.strip() if isinstance(value, str) else None)
    return _Row(where, values[0], values[1])


def _is_text(value: str) -> bool:
    """JSON can spell halves of characters, which no tokenizer takes, and zero bytes, which no path may hold."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)


def _shown(value: object) -> str:
    """What a message shows of something that may be as long as a file."""
    text = ascii(value) if not isinstance(value, str) or not _is_text(value) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _folder(source: str, filesystem: pa.fs.FileSystem, inner: str) -> Iterator[_Row]:
    """Every clip below the folder, sorted by path, captioned by the `.txt` of the same name."""
    try:
        files = _files(source, filesystem, inner)
    except (OSError, UnicodeError) as error:  # a folder that may not be read, a name that is no text
        raise ManifestError(f"{source}: its files can't be listed: {error}") from error
    texts = {file for file in files if file.endswith(".txt")}
    for file in files:
        if Path(file).suffix.lower() not in VIDEO_ENDINGS:
            continue
        video = join(source, file[len(inner) :].lstrip("/"))
        text = str(Path(file).with_suffix(".txt"))
        yield _Row(video, video, _beside(filesystem, text) if text in texts else "")


def _files(source: str, filesystem: pa.fs.FileSystem, inner: str) -> list[str]:
    """Regular files and links to such below a folder, sorted. Links to folders are not followed: they may go round."""
    if not isinstance(filesystem, pa.fs.LocalFileSystem):
        found = filesystem.get_file_info(pa.fs.FileSelector(inner, recursive=True))
        return sorted(file.path for file in found if file.is_file)
    files, links = [], []
    for folder, folders, names in os.walk(inner, onerror=_refuse):
        links += [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
        files += [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]
    if links:
        log.warning("%s: %d links to other folders are not followed, the first is %s", source, len(links), links[0])
    for file in files:
        file.encode()
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise error


def _beside(filesystem: pa.fs.FileSystem, text: str) -> str:
    """The caption in a file."""
    try:
        with filesystem.open_input_stream(text) as stream:
            caption = " ".join(stream.read().decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ManifestError(f"{text}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise ManifestError(f"{text} can't be read: {error}") from error
    if not _is_text(caption):
        raise ManifestError(f"{text}: {_shown(caption)} is not text")
    return caption
