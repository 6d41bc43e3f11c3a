"""metrics.jsonl: the figures of every step (docs/summary.md lists them), and which checkpoint was rewarded most."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from rayvideo.storage import is_file, is_uri, read_bytes, read_lines, write_bytes

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0  # between writings of the whole file, where it can't grow
SAVE_SHARE = 0.01  # of a run's time that writing may take


class Best(NamedTuple):
    """The checkpoint whose steps were rewarded most."""

    step: int
    reward: float
    """Mean over the steps since the checkpoint before."""


class Journal:
    """Writes metrics.jsonl: one JSON object for each step, in their order, each step once.

    Steps are appended to a local file, which `tail -f` can follow. Nothing can be appended to an object in a bucket:
    there the whole file is written anew, now and then and by `save`.

    Args:
        path: Local file or URI. Of the steps that it holds already, those up to `start` are kept.
        start: Optimizer steps that are done: those of the checkpoint that the run goes on from.
        best: The best checkpoint so far, by what that checkpoint says.
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
        """Append the figures of a step."""
        self._lines.append(json.dumps({"step": step, **values}))
        self._since.append(values["reward"])
        if not self._remote:
            with open(self._path, "a") as file:
                file.write(self._lines[-1] + "\n")
        elif time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Return when every step is in storage, where a crash of this machine does not take it away."""
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
        """Take the checkpoint of `step` into account, and return the best one so far.

        A checkpoint's reward is the mean over the steps that were added since the checkpoint before.
        """
        if self._since:
            reward = fmean(self._since)
            self._since.clear()
            if self.best is None or reward > self.best.reward:
                self.best = Best(step, reward)
        return self.best
