"""What tests of serving do to actors: find them by name, and kill their processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import ray


def replicas(pool: str) -> list[Any]:
    """Handles of the living replicas of the pool with this name."""
    return [ray.get_actor(name) for name in ray.util.list_named_actors() if name.startswith(f"{pool}/")]


def pid_of(actor: Any) -> int:
    """The process that an actor runs in."""
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def kill(*pids: int) -> None:
    """End processes without warning."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def eventually(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.1)
