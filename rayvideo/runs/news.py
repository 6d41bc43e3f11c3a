"""What a training does at the moment: rank 0 writes it down, and the driver reads and shows it.

It is kept under a key in the store of Ray's control service. That works wherever the run folder is, takes no process of
its own, and costs a step a millisecond.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# Internal: the key-value store of Ray's control service. The public way is an actor, a process more that can be lost.
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put


@dataclass(frozen=True)
class News:
    """What rank 0 does at the moment."""

    phase: str = ""
    """What takes the time; empty while steps follow each other."""
    done: int = 0
    total: int = 0
    """Of the phase; 0 if there is nothing to count."""
    step: int | None = None
    """Optimizer steps that are done, once it is known where the workers go on."""
    attempt: int = 0
    """Which start of workers this is in the run's life."""
    pace: float | None = None
    """Seconds that a step usually takes, once there was one."""
    scores: dict[str, float] = field(default_factory=dict)
    """Judge -> raw score of the newest step."""
    reward: float | None = None
    """Of the newest step."""
    judge_wait: float = 0.0
    """Share of the newest step's time that the worker stood waiting for judges."""
    compared: dict[str, list[float]] = field(default_factory=dict)
    """Measure of generated clips -> its means over all caption sets at the newest comparison: base, tuned."""
    compared_at: int | None = None
    """Step of that comparison."""
    said: list[str] = field(default_factory=list)
    """Lines for the user, all of this attempt's so far."""


@dataclass(frozen=True)
class Board:
    """Where the news is kept; what is pinned takes the place of what was there."""

    key: str = field(default_factory=lambda: f"rayvideo/news/{uuid.uuid4().hex}")

    def pin(self, news: News) -> None:
        _internal_kv_put(self.key, json.dumps(asdict(news)).encode())

    def read(self) -> News:
        pinned = _internal_kv_get(self.key)
        return News(**json.loads(pinned)) if pinned else News()

    def clear(self) -> None:
        _internal_kv_del(self.key)


class Reporter:
    """Pins what one worker has to say to a board.

    Args:
        board: None on every rank but 0: the others stay silent.
    """

    def __init__(self, board: Board | None) -> None:
        self._board = board
        self._news = News()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Say what takes the time from now on, and how much of it is done if that can be counted."""
        self._pin(phase=name, done=done, total=total)

    def stepped(self, step: int, **known: Any) -> None:
        """Say that so many optimizer steps are done, and what else of `News` is known by now."""
        self._pin(phase="", done=0, total=0, step=step, **known)

    def compared(self, step: int, means: Mapping[str, list[float]]) -> None:
        """Say how the clips of a step compare with the base's."""
        if means:
            self._pin(compared=dict(means), compared_at=step)

    def say(self, *lines: str) -> None:
        """Tell the user something; what a worker prints is seen on a cluster only."""
        self._pin(said=[*self._news.said, *lines])

    def _pin(self, **changes: Any) -> None:
        if self._board:
            self._news = replace(self._news, **changes)
            self._board.pin(self._news)
