"""CPU seconds of a process and all that descend from it, by kind, while they come and go."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
from typing_extensions import Self

LOOK_S = 0.25
RAY = "ray::"
"""With which Ray begins the titles of its workers, whatever they do."""
UNDECIDED = ("", "IDLE", "default_worker.py", "setup_worker.py")
"""What a worker is while it has nothing to do, and while Ray starts it."""
SMALL_S = 0.5
"""Kinds of less CPU time are told together."""


class Processes:
    """Looks at a process and its descendants while it is entered; what a process did after the last look is missed."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, float], tuple[str, float]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def cpu_seconds(self) -> dict[str, float]:
        """Kind of process -> CPU seconds so far, of those that have ended too; the largest first."""
        found: dict[str, float] = {}
        with self._lock:
            for kind, seconds in self._seen.values():
                found[kind] = found.get(kind, 0.0) + seconds
        large = {kind: seconds for kind, seconds in found.items() if seconds >= SMALL_S}
        others = sum(found.values()) - sum(large.values())
        return {**dict(sorted(large.items(), key=lambda item: -item[1])), "others": others}

    def _look(self) -> None:
        while not self._done.wait(LOOK_S):
            try:
                root = psutil.Process(self._root)
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                self._note(process)

    def _note(self, process: psutil.Process) -> None:
        try:
            times, words = process.cpu_times(), process.cmdline()
        except psutil.NoSuchProcess:
            return
        key = process.pid, process.create_time()
        before = self._seen.get(key, ("", 0.0))[0]
        with self._lock:
            self._seen[key] = kind_of(words, before), times.user + times.system


def kind_of(words: list[str], before: str = "") -> str:
    """What a process is, by its command line: a task or actor of Ray's by its first name that is not idle.

    Args:
        before: What it was when it was looked at last.
    """
    title = " ".join(words).strip()
    if before not in UNDECIDED:
        return before
    if title.startswith(RAY):
        return title.removeprefix(RAY).partition(".")[0].strip()
    names = [Path(word).name for word in words if not word.startswith("-")]
    scripts = [name for name in names if name.endswith(".py")]
    return (scripts or names or [before])[0]
