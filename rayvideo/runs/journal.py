"""metrics.jsonl: what every step came to, and which checkpoint was rewarded most."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from rayvideo.data.storage import is_file, is_uri, read_bytes, read_lines, write_bytes

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0
SAVE_SHARE = 0.01  # of a run's time, at most


class Best(NamedTuple):
    """The checkpoint whose steps were rewarded most."""

    step: int
    reward: float
    """Mean over the steps since the checkpoint before."""


class Journal:
    """metrics.jsonl: one JSON object a step, in the order of steps, each step once.

    A local file grows by each step, and stays the same file: `tail -f` follows it. A bucket's objects can't grow; there
    the file is written anew at an interval, and by `save`.

    Args:
        path: Local file or URI; steps up to `start` that it holds already are kept.
        start: Optimizer steps that are done.
        best: Of the checkpoints so far.
    """

    def __init__(self, path: str, start: int, best: Best | None = None) -> None:
        self._path = path
        self._remote = is_uri(path)
        self._lines = [json.dumps(line) for line in read_lines(path) if line["step"] <= start]
        if missing := start - len(self._lines):
            logger.warning("%s: %d of the first %d steps are missing; MLflow has them", path, missing, start)
        self._since: list[float] = []
        self.best = best
        if not is_file(path) or read_bytes(path) != self._content():
            self._write()
        self._next_save = time.monotonic() + SAVE_EVERY_S

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a step."""
        self._lines.append(json.dumps({"step": step, **values}))
        self._since.append(values["reward"])
        if not self._remote:
            with open(self._path, "a") as file:
                file.write(self._lines[-1] + "\n")
        elif time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Return when every step is in storage, to last."""
        if not self._remote:
            with open(self._path) as file:
                os.fsync(file.fileno())
            return
        started = time.monotonic()
        self._write()
        ended = time.monotonic()
        self._next_save = ended + max(SAVE_EVERY_S, (ended - started) / SAVE_SHARE)

    def _write(self) -> None:
        write_bytes(self._path, self._content())

    def _content(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()

    def update_best(self, step: int) -> Best | None:
        """The best checkpoint, once `step` has one too: it is judged by the steps added since this was asked last."""
        if self._since:
            reward = fmean(self._since)
            self._since.clear()
            if self.best is None or reward > self.best.reward:
                self.best = Best(step, reward)
        return self.best
