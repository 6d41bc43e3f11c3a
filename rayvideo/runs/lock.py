"""A lock by which only one driver at a time trains a run: two would garble each other's checkpoints."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import gettempdir

from rayvideo.errors import RecipeError
from rayvideo.locking import locked
from rayvideo.storage import is_uri

LOCK = ".driver"


@contextmanager
def only_driver(run_folder: str) -> Iterator[None]:
    """Hold the run's lock while the block runs; the system releases it when the process ends, however it ends.

    It is a file in the run folder. Files in buckets can't be locked: there it is one on this machine, and keeps out
    only drivers on this machine.

    Raises:
        RecipeError: another process trains this run.
    """
    in_bucket = is_uri(run_folder)
    file = _local(run_folder) if in_bucket else Path(run_folder, LOCK)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(file, wait=False, otherwise="start only one driver of this run"))
        except BlockingIOError:
            raise RecipeError(
                f"{run_folder}: {file.read_text() or 'another process'} trains this run already; wait for it, or end "
                "it and go on with --resume"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            if not in_bucket and list(file.parent.iterdir()) == [file]:  # nothing was begun, so leave no folder behind
                file.unlink()
                file.parent.rmdir()


def _local(uri: str) -> Path:
    return Path(gettempdir(), f"rayvideo-{os.getuid()}-{blake2b(uri.encode(), digest_size=16).hexdigest()}.lock")
