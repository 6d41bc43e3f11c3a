"""What lies in a run folder, local or in a bucket."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayvideo.data.storage import join, locate, read_object


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
