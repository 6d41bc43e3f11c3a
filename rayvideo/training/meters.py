"""What a step is measured by: where its time went, and means over all workers."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.data.storage import is_uri, read_bytes, write_bytes
from rayvideo.evaluation.folder import is_file


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


class Journal:
    """metrics.jsonl: one JSON object a step, in the order of steps, each step once.

    Args:
        path: Local file or URI; steps up to `start` that it holds already are kept.
        start: Optimizer steps that are done.
    """

    def __init__(self, path: str, start: int) -> None:
        self._path = path
        # A process that was killed may have left the beginning of a line, which the step done again replaces.
        lines = read_bytes(path).decode().split("\n")[:-1] if start and is_file(path) else []
        self._lines = [line for line in lines if json.loads(line)["step"] <= start]
        self.save()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a step."""
        self._lines.append(json.dumps({"step": step, **values}))
        if not is_uri(self._path):  # a bucket's objects can't grow: there `save` brings the new lines
            with open(self._path, "a") as file:
                file.write(self._lines[-1] + "\n")

    def save(self) -> None:
        """Write the whole file."""
        write_bytes(self._path, "".join(f"{line}\n" for line in self._lines).encode())
