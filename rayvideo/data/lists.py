"""List files, row by row: the reference's text lists (`video|||caption|||16`), csv, json, jsonl and Parquet.

Text is UTF-8; a byte order mark, Windows line ends and blank lines do no harm. Anything else out of order is a bad row,
or an error that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rayvideo.data.containers import is_clip_name
from rayvideo.errors import UserError
from rayvideo.storage import is_uri, locate, read_bytes

SEPARATOR = "|||"
BYTE_ORDER_MARK = "\ufeff"
LONGEST_SHOWN = 200
FORMS = (
    "a text list of video|||caption lines, .csv, .json, .jsonl, .parquet, or a folder of clips with .txt files or a "
    "list beside them"
)


class ManifestError(UserError):
    """A list that can't be read as one; the message names the file, the line and what is allowed."""


class BadRow(NamedTuple):
    """An entry of a list that can't be used."""

    text: str
    """The entry as the list has it."""
    reason: str
    """Names file and line, and what is allowed."""


class Row(NamedTuple):
    """One entry of a list; `first` is the clip in a list of clips, and the name in a list of captions."""

    where: str
    first: str | None
    caption: str | None
    bad: BadRow | None = None


class Columns(NamedTuple):
    """What the two columns of a table may be called; where it has several, the one that comes first here is taken."""

    first: tuple[str, ...]
    caption: tuple[str, ...]
    needs_first: bool

    def within(self, where: str, found: Iterable[str]) -> tuple[str | None, str]:
        """The names of the two among those that were found; the first may be None where it is not needed.

        Raises:
            ManifestError: a column is missing.
        """
        names = list(found)
        first, caption = (next((name for name in each if name in names), None) for each in (self.first, self.caption))
        if caption is not None and (first is not None or not self.needs_first):
            return first, caption
        needed = ((self.first, first),) if self.needs_first else ()
        wanted = [names for names, name in (*needed, (self.caption, caption))]
        missing = [names[0] for names, name in (*needed, (self.caption, caption)) if name is None]
        also = [f"{each[0]} may be called {', '.join(each[1:])}" for each in wanted if len(each) > 1]
        raise ManifestError(
            f"{where}: no {' and no '.join(missing)} among {names}; "
            + "; ".join([f"needed: {', '.join(each[0] for each in wanted)}", *also])
        )


CLIPS = Columns(
    ("video", "file_name", "file_path", "video_path", "media_path", "path"), ("caption", "text", "prompt"), True
)
CAPTIONS = Columns(("name",), ("caption",), False)


def rows(source: str, columns: Columns) -> Iterator[Row]:
    """The entries of a list file, in its order.

    Raises:
        ManifestError: the file as a whole can't be read.
    """
    ending = Path(source).suffix.lower()
    if ending == ".parquet":
        return _parquet(source, columns)
    try:
        text = decoded(source, read_bytes(source))
    except OSError as error:
        raise ManifestError(f"{source} can't be read: {error}") from error
    lines = io.StringIO(text, newline=None)  # takes the line ends of every system
    if ending == ".csv":
        return _csv(source, lines, columns)
    if ending == ".jsonl":
        return _jsonl(source, lines, columns)
    if ending == ".json":
        return _json(source, text, columns)
    if ending in ("", ".txt", ".list"):
        return _text(source, lines, columns)
    raise ManifestError(f"{source}: {ending!r} is no known kind of list; allowed: {FORMS}")


def decoded(source: str, content: bytes) -> str:
    """A file's text.

    Raises:
        ManifestError: it is no UTF-8 text.
    """
    try:
        # Where files were joined, byte order marks are in the middle too.
        text = content.decode("utf-8").replace(BYTE_ORDER_MARK, "")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{source} line {line}: not UTF-8 text") from None
    if "\0" in text:
        raise ManifestError(f"{source}: zero bytes, as UTF-16 has them; allowed: UTF-8 text, or .parquet by its name")
    return text


def clip_path(name: str) -> str:
    """A clip's path as a list has it, with `~` and Windows' backslashes turned into what this system takes."""
    # Not by `paths.expand`, which refuses what may well be a file's name: ~ with an unknown user, or a part with $.
    return name if is_uri(name) else os.path.expanduser(name.replace("\\", "/"))


def is_text(value: str) -> bool:
    """Whether it is text that can be used.

    JSON can write halves of characters, which no tokenizer takes, and zero bytes, which no path may hold.
    """
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)


def shown(value: object) -> str:
    """A value as messages show it: in one line, and cut where it is long, for it may be as long as a file."""
    text = ascii(value) if not isinstance(value, str) or not is_text(value) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _text(source: str, lines: Iterable[str], columns: Columns) -> Iterator[Row]:
    first = columns.first[0]
    numbered = [(f"{source} line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    plain = not columns.needs_first and not any(SEPARATOR in line for _, line in numbered)
    allowed = f"allowed: {first}{SEPARATOR}caption or {first}{SEPARATOR}caption{SEPARATOR}16"
    for where, line in numbered:
        if plain:
            yield Row(where, None, line, _bad(where, line, _misread(line), f"{allowed}, or one caption a line"))
            continue
        fields = [field.strip() for field in line.split(SEPARATOR)]
        caption = fields[1] if len(fields) > 1 else None
        yield Row(where, fields[0], caption, _bad(where, line, _misfit(fields, line, first), allowed))


def _bad(where: str, line: str, fault: str | None, allowed: str) -> BadRow | None:
    return BadRow(line, f"{where}: {fault}; {allowed}") if fault else None


def _misfit(fields: Sequence[str], line: str, first: str) -> str | None:
    """What is wrong with a line that has fields, if anything."""
    if len(fields) not in (2, 3):
        return f"{len(fields)} fields in {shown(line)}"
    if any(field.startswith("|") or field.endswith("|") for field in fields):
        return f"more than {SEPARATOR!r} between the fields of {shown(line)}"
    if not fields[0]:
        return f"no {first} in {shown(line)}"
    if len(fields) == 3 and not fields[2].isdecimal():
        return f"{shown(fields[2])} is not a number of frames"
    return None


def _misread(line: str) -> str | None:
    """Why a line can't be a caption, if so: it may belong to a list with other separators, or to one of clips."""
    if "||" in line or "\t" in line:
        return f"{shown(line)} looks like fields, but not with {SEPARATOR!r} between them"
    if is_clip_name(line):
        return f"{shown(line)} is a file name, not a caption"
    return None


def _csv(source: str, lines: Iterable[str], columns: Columns) -> Iterator[Row]:
    reader = csv.DictReader(lines, strict=True)
    try:
        names = reader.fieldnames or []
        taken = columns.within(source, names)
        if twice := [name for name in taken if name and names.count(name) > 1]:
            raise ManifestError(f"{source}: {' and '.join(twice)} stand in its header more than once")
        for record in reader:
            where = f"{source} line {reader.line_num}"
            # DictReader puts surplus fields under the key None, and gives missing ones the value None.
            if None in record or None in record.values():
                reason = f"{where}: needs {len(names)} fields, as its header has"
                yield Row(where, None, None, BadRow(str(list(record.values())), reason))
            else:
                yield _row(where, record, taken)
    except csv.Error as error:
        raise ManifestError(f"{source} line {reader.line_num}: {error}") from None


def _jsonl(source: str, lines: Iterable[str], columns: Columns) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        text = line.strip()
        try:
            record = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:  # the latter for 1000 brackets within each other
            yield Row(where, None, None, BadRow(text, f"{where}: not JSON ({error}); allowed: one object a line"))
        else:
            yield _record(where, text, record, columns)


def _json(source: str, text: str, columns: Columns) -> Iterator[Row]:
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not JSON ({error}); allowed: a list of objects") from None
    if not isinstance(found, list):
        raise ManifestError(f"{source}: {shown(found)} is not a list of objects")
    for number, record in enumerate(found, 1):
        yield _record(f"{source} entry {number}", shown(record), record, columns)


def _record(where: str, text: str, record: object, columns: Columns) -> Row:
    try:
        if not isinstance(record, dict):
            raise ManifestError(f"{where}: {shown(text)} is not an object with {columns.first[0]!r} and 'caption'")
        taken = columns.within(where, record)
    except ManifestError as error:
        return Row(where, None, None, BadRow(text, str(error)))
    return _row(where, record, taken)


def _each_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands there twice, among {[key for key, _ in pairs]}")
    return record


def _parquet(source: str, columns: Columns) -> Iterator[Row]:
    filesystem, inner = locate(source)
    try:
        taken = columns.within(source, pq.read_schema(inner, filesystem=filesystem).names)
        table = pq.read_table(inner, filesystem=filesystem, columns=[name for name in taken if name])
        records = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{source}: not a Parquet file, or a damaged one ({shown(str(error))})") from None
    for number, record in enumerate(records):
        yield _row(f"{source} row {number}", record, taken)


def _row(where: str, record: dict[str, object], taken: tuple[str | None, str]) -> Row:
    values: list[str | None] = []
    for name in taken:
        value = record[name] if name else None
        if not (value is None or (isinstance(value, str) and is_text(value))):
            return Row(where, None, None, BadRow(shown(value), f"{where}: {shown(value)} is not text"))
        values.append(value.strip() if isinstance(value, str) else None)
    return Row(where, values[0], values[1])
