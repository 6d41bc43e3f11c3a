"""Local paths and cloud URIs through one door: pyarrow's filesystems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs


def locate(path: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem that `path` lies on and its path there: a local path, or a URI such as `s3://bucket/folder`."""
    text = str(path)
    return pa.fs.FileSystem.from_uri(text) if is_uri(text) else (pa.fs.LocalFileSystem(), str(Path(text).absolute()))


def is_uri(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """The same place for every process; Ray's workers may have another working directory."""
    return path if is_uri(path) else str(Path(path).absolute())


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
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner) as source:
        return bytes(source.read())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with replacing(path) as (filesystem, temporary), filesystem.open_output_stream(temporary) as target:
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
