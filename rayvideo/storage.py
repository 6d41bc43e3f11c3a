"""Files on local disks and in clouds' object stores, read and written alike: by pyarrow's filesystems."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayvideo.errors import UserError

logger = logging.getLogger(__name__)


class StorageError(UserError):
    """A path or URI that leads nowhere, or a file that does not hold what was written there."""


def locate(path: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem that `path` lies on and its path there: a local path, or a URI such as `s3://bucket/folder`.

    Raises:
        StorageError: no such kind of URI, or a path that no file system takes.
    """
    text = str(path)
    try:
        text.encode()
        if "\0" in text:
            raise ValueError("it holds a zero byte")
        return pa.fs.FileSystem.from_uri(text) if is_uri(text) else (pa.fs.LocalFileSystem(), _absolute(text))
    except (pa.ArrowException, OSError, ValueError) as error:  # `encode` raises a ValueError too
        raise StorageError(f"{text!a} is neither a local path nor a URI that can be used: {error}") from error


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def is_uri(path: str) -> bool:
    """Whether it has the form of a URI; everything else is a local path."""
    return "://" in path


def absolute(path: str) -> str:
    """The path from the root on, since Ray's workers may have another working directory; URIs are left as they are."""
    return path if is_uri(path) else _absolute(path)


def join(folder: str, name: str) -> str:
    """`name` below `folder`, unless it is an absolute path or a URI already.

    A URI keeps its query, where an object store's endpoint may stand.
    """
    if is_uri(name):
        return name
    if is_uri(folder):
        place, mark, query = folder.partition("?")
        return name if name.startswith("/") else f"{place.rstrip('/')}/{name}{mark}{query}"
    return str(Path(folder, name))


def parent(path: str) -> str:
    """The folder that `path` lies in."""
    if not is_uri(path):
        return str(Path(path).parent)
    place, mark, query = path.partition("?")
    return f"{place.rpartition('/')[0]}{mark}{query}"


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes as they are stored; pyarrow would unpack a file whose name ends in .gz and the like."""
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner, compression=None) as source:
        return bytes(source.read())


def read_object(path: str | Path, mend: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        StorageError: it holds none; ends with `mend`, which is what to do then.
    """
    try:
        found = json.loads(read_bytes(path))
        if isinstance(found, dict):
            return found
        reason = f"a {type(found).__name__}"
    # No UTF-8 and no JSON raise these, and so do numbers of 5000 digits and 1000 brackets within each other.
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise StorageError(f"{path} is damaged or of something else: it holds no JSON object ({reason}); {mend}")


@contextmanager
def fetched(path: str) -> Iterator[Path]:
    """A file or a folder as a local one while the block runs; it is copied from an object store."""
    filesystem, inner = locate(path)
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        yield Path(inner)
        return
    with TemporaryDirectory() as local:
        here = Path(local, inner.rpartition("/")[2])
        if not filesystem.get_file_info(inner).is_file:
            here.mkdir()
        pa.fs.copy_files(inner, str(here), source_filesystem=filesystem)
        yield here


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    filesystem, inner = locate(path)
    return bool(filesystem.get_file_info(inner).type == pa.fs.FileType.File)


def read_summary(folder: str) -> dict[str, Any]:
    """What jobs have written into `folder`/summary.json so far; empty if none has.

    Raises:
        StorageError: the file holds something else.
    """
    path = join(folder, "summary.json")
    return read_object(path, "move it away, then it is written anew") if is_file(path) else {}


def read_lines(path: str) -> list[dict[str, Any]]:
    """The JSON objects of a file that holds one a line; none if there is no file.

    Lines that hold no JSON, such as the last one of a process that was killed, are left out with a warning.
    """
    lines = []
    for number, line in enumerate(read_bytes(path).splitlines() if is_file(path) else [], 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            logger.warning("%s: line %d is no JSON, it is left out", path, number)
    return lines


def write_lines(path: str, objects: Iterable[object]) -> None:
    """Write JSON objects, one a line, atomically. The whole file, because nothing can be appended to a bucket's."""
    write_bytes(path, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in objects).encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file, atomically: others see the old content or the new one, nothing in between."""
    with (
        replacing(path) as (filesystem, temporary),
        filesystem.open_output_stream(temporary, compression=None) as target,
    ):
        target.write(content)


@contextmanager
def replacing(path: str | Path) -> Iterator[tuple[pa.fs.FileSystem, str]]:
    """Yield a filesystem and a temporary path on it; what was written there becomes `path` if the block succeeds."""
    filesystem, inner = locate(path)
    folder, _, name = inner.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    temporary = f"{folder}/_{name}"
    yield filesystem, temporary
    filesystem.move(temporary, inner)
