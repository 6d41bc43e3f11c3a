"""What lies in a run folder, local or in a bucket."""

from __future__ import annotations

import json
import logging
from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayvideo.data.storage import join, locate, read_bytes, read_object

logger = logging.getLogger(__name__)


def read_summary(folder: str) -> dict[str, Any]:
    """What jobs have written into `folder`/summary.json so far; empty if none has.

    Raises:
        StorageError: something else stands there.
    """
    path = join(folder, "summary.json")
    return read_object(path, "move it away, then it is written anew") if is_file(path) else {}


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    filesystem, inner = locate(path)
    return bool(filesystem.get_file_info(inner).type == pa.fs.FileType.File)


def read_lines(path: str) -> list[dict[str, Any]]:
    """The JSON objects of a file that holds one a line; none if there is no file.

    Lines that are none, such as the last one of a process that was killed, are left out with a warning.
    """
    lines = []
    for number, line in enumerate(read_bytes(path).splitlines() if is_file(path) else [], 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            logger.warning("%s: line %d is no JSON, it is left out", path, number)
    return lines
