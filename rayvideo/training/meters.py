"""What a step is measured by: where its time went, and means over all workers."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.data.storage import is_uri, write_bytes
from rayvideo.evaluation.folder import read_lines

logger = logging.getLogger(__name__)


class Clock:
    """Seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `phase`."""
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":  # work that was only queued belongs to this phase
            torch.cuda.synchronize(self._device)
        self.seconds[phase] += time.perf_counter() - started


def mean_over_workers(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over all workers, which must call this with the same keys."""
    vector = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(vector)
    return dict(zip(values, (vector / dist.get_world_size()).tolist(), strict=True))


def gather_over_workers(values: Tensor) -> Tensor:
    """The numbers [n] of every worker, each with as many, by rank: [workers·n]."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class Best(NamedTuple):
    """The checkpoint whose steps were rewarded most."""

    step: int
    reward: float
    """Mean over the steps since the checkpoint before."""


class Journal:
    """metrics.jsonl: one JSON object a step, in the order of steps, each step once.

    Args:
        path: Local file or URI; steps up to `start` that it holds already are kept.
        start: Optimizer steps that are done.
        best: Of the checkpoints so far.
    """

    def __init__(self, path: str, start: int, best: Best | None = None) -> None:
        self._path = path
        self._lines = [json.dumps(line) for line in read_lines(path) if line["step"] <= start]
        if missing := start - len(self._lines):
            logger.warning("%s: %d of the first %d steps are missing; MLflow has them", path, missing, start)
        self._since: list[float] = []
        self.best = best
        self.save()

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a step."""
        self._lines.append(json.dumps({"step": step, **values}))
        self._since.append(values["reward"])
        if not is_uri(self._path):  # a bucket's objects can't grow: there `save` brings the new lines
            with open(self._path, "a") as file:
                file.write(self._lines[-1] + "\n")

    def save(self) -> None:
        """Write the whole file."""
        write_bytes(self._path, "".join(f"{line}\n" for line in self._lines).encode())

    def rate(self, step: int) -> Best | None:
        """The best checkpoint, once `step` has one too: it is judged by the steps added since this was asked last."""
        if self._since:
            reward = fmean(self._since)
            self._since.clear()
            if self.best is None or reward > self.best.reward:
                self.best = Best(step, reward)
        return self.best
