"""One driver at a time trains a run: two that resumed it at once would garble each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import gettempdir

from rayvideo.data.storage import is_uri
from rayvideo.errors import RecipeError

logger = logging.getLogger(__name__)

LOCK = ".driver"
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What some network file systems answer."""


@contextmanager
def only_driver(run_folder: str) -> Iterator[None]:
    """Keep the run to this process; the system takes the lock back when the process ends, however it does.

    The lock lies in the run folder. Buckets have none: there it lies on this machine, and other machines don't see it.

    Raises:
        RecipeError: another process trains this run.
    """
    in_bucket = is_uri(run_folder)
    file = _local(run_folder) if in_bucket else Path(run_folder, LOCK)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", opener=_without_links) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RecipeError(
                f"{run_folder}: {lock.read() or 'another process'} trains this run already; wait for it, or end it and "
                "go on with --resume"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: files can't be locked there (%s), so start only one driver of this run", file, error)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            if not in_bucket and list(file.parent.iterdir()) == [file]:  # nothing was begun
                file.unlink()
                file.parent.rmdir()


def _local(uri: str) -> Path:
    return Path(gettempdir(), f"rayvideo-{os.getuid()}-{blake2b(uri.encode(), digest_size=16).hexdigest()}.lock")


def _without_links(path: str, flags: int) -> int:
    """Open a file, but not what somebody else's link in a shared folder leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
