"""Locks on files, which the system takes back when a process ends, however it does."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What some network file systems answer."""


@contextmanager
def locked(file: Path, *, wait: bool, otherwise: str) -> Iterator[TextIO]:
    """Hold the lock of a file, which is made, with its folder, if there is none; yield it opened to be written.

    Args:
        wait: For another process that holds it.
        otherwise: What a user has to see to where the file system knows no locks; it is warned of.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file can't be made or opened.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", opener=_without_links) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: files can't be locked there (%s), so %s", file, error, otherwise)
        yield lock


def _without_links(path: str, flags: int) -> int:
    """Open a file, but not what somebody else's link in a shared folder leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
