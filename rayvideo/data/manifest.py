"""Lists of clips and lists of captions, in every form that users bring.

Forms: list files (`rayvideo.data.lists`) and folders of clips (`rayvideo.data.folders`). Repeated entries are dropped
and counted; anything else out of order is an error naming file and line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.fs

from rayvideo.data import folders
from rayvideo.data.lists import CAPTIONS, CLIPS, FORMS, BadRow, ManifestError, Row, clip_path, rows
from rayvideo.storage import join, locate, parent

__all__ = [
    "BadRow",
    "Caption",
    "Entry",
    "ManifestError",
    "read_captioned",
    "read_captions",
    "read_manifest",
    "scan_captions",
]

log = logging.getLogger(__name__)


class Entry(TypedDict):
    """One clip and what it shows; an empty caption means that the list has none for it."""

    video: str
    caption: str


class Caption(NamedTuple):
    """One line of an evaluation list; `name` only names the output."""

    name: str
    caption: str


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
    if _is_folder(source):
        if root is not None:
            raise ManifestError(f"{source} is a folder of clips, so data.root {root!r} has no meaning; leave it out")
        found = folders.clips(source)
    else:
        folder = parent(source) if root is None else root
        listed = rows(source, CLIPS)
        found = (row._replace(first=join(folder, clip_path(row.first))) if row.first else row for row in listed)
    entries = [Entry(video=first, caption=caption) for first, caption in _distinct(source, found)]
    if not entries:
        raise ManifestError(f"{source} lists no clips; allowed: {FORMS}")
    return entries


def read_captioned(path: str | Path, root: str | None, max_bad_fraction: float) -> list[Entry]:
    """What `read_manifest` reads, for those who will drop clips without a caption.

    Raises:
        ManifestError: also if more than this share of the clips has no caption, or none has; names lists beside them.
    """
    entries = read_manifest(path, root)
    without = [entry["video"] for entry in entries if not entry["caption"]]
    if len(without) > max_bad_fraction * len(entries) or len(without) == len(entries):
        raise ManifestError(
            f"{path}: {len(without)} of {len(entries)} clips have no caption, such as {without[0]}; "
            f"data.max_bad_fraction allows {max_bad_fraction:g} of them{_where_captions_go(str(path))}"
        )
    return entries


def _where_captions_go(source: str) -> str:
    if not _is_folder(source):
        return ""
    mend = "put a .txt of the same name beside each, or a metadata.csv with columns file_name and text into the folder"
    return "; ".join(["", mend, *folders.unread_lists(source)])


def read_captions(path: str | Path) -> list[Caption]:
    """The captions of an evaluation list: `name|||caption|||16` lines, or one caption a line, or a table.

    In a `.csv`, `.json`, `.jsonl` or `.parquet` the column `caption` is needed, `name` is not. Captions without a name
    are named by their number, "0000" first. The same name with the same caption again is dropped with a warning.

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
    if _is_folder(source):
        raise ManifestError(f"{source} is a folder; a list of captions is a .txt, .csv, .json, .jsonl or .parquet file")
    captions, bad = [], []
    for number, row in enumerate(rows(source, CAPTIONS)):
        if row.bad:
            bad.append(row.bad)
        elif not row.caption:
            bad.append(BadRow(row.first or "", f"{row.where}: no caption"))
        else:
            captions.append(Caption(row.first or f"{number:04d}", row.caption))
    if not captions:
        raise ManifestError(bad[0].reason if bad else f"{source} lists no captions")
    return captions, bad


def _is_folder(source: str) -> bool:
    if not source:
        raise ManifestError(f"no list of clips or captions is named; allowed: {FORMS}")
    filesystem, inner = locate(source)
    try:
        kind = filesystem.get_file_info(inner).type
    except OSError as error:
        raise ManifestError(f"{source} can't be looked at: {error}") from error
    if kind not in (pa.fs.FileType.File, pa.fs.FileType.Directory):
        raise ManifestError(f"{source} does not exist, or is no regular file; allowed: {FORMS}")
    return kind == pa.fs.FileType.Directory


def _distinct(source: str, entries: Iterable[Row]) -> Iterator[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    repeated: list[str] = []
    for row in entries:
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
