"""What a step is measured by: where its time went, and means over all workers."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

PACE_STEPS = 20


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


class Pace:
    """What a step usually takes: the median of the last ones. The first, which warms up, does not count."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=PACE_STEPS)
        self._warm = False

    def add(self, seconds: float) -> float | None:
        """A step more; returns the seconds that one usually takes, None after the first."""
        if self._warm:
            self._seconds.append(seconds)
        self._warm = True
        return median(self._seconds) if self._seconds else None


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
