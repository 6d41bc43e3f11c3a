"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayvideo.errors import UserError


@contextmanager
def written_whole(target: str | Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` if the block ends without an error.

    Raises:
        UserError: if `target` exists already; an empty folder may.
    """
    target = Path(target)
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        raise UserError(f"{target} exists already and is not overwritten; remove it or name another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder / target.name
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder)
