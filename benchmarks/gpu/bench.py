"""Measures cases one by one for as long as there is time; what goes wrong in one is told, and the next begun."""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cases import BF16, Setting, World
from benchmarks.gpu.flops import Counts, count_step
from benchmarks.gpu.step import PARTS, Step
from rayvideo.training.meters import Clock

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HELPS = 1.02
"""How much faster a change must make a step to be one of those that helped."""
GIB, TERA = 2**30, 1e12

Record = dict[str, Any]
"""What is told of a case."""


@dataclass
class Bench:
    """Measures cases, and prints each as a line of JSON."""

    device: torch.device
    configs: Path
    repeat: int
    budget: float
    """Seconds that a case's steps may take."""
    deadline: float
    """When all must be done, by time.monotonic()."""
    rate: float
    """FLOP/s of the card's matrix products."""
    flops: Counts
    records: list[Record] = field(default_factory=list)
    _usual_took: dict[str, float] = field(default_factory=dict)

    def run(self, worlds: Sequence[World]) -> None:
        """The usual step of every world; then each change of it alone, and all that helped together."""
        for world in worlds:
            self.case(world, "usual", world.usual)
        for world in worlds:
            for name in world.changes:
                self.case(world, name, world.changed([name]))
            if len(helped := self.helped(world)) > 1:
                self.case(world, " + ".join(helped), world.changed(helped))

    def helped(self, world: World) -> list[str]:
        """The changes that made the step faster; of those to the same field the best."""
        found = [one for one in self.records if one["world"] == world.name and "clips/s" in one]
        speeds = {one["case"]: one["clips/s"] for one in found}
        best: dict[str, str] = {}
        for name in sorted(speeds, key=lambda name: speeds[name]):
            if name in world.changes and speeds[name] > HELPS * speeds.get("usual", math.inf):
                best |= dict.fromkeys(world.changes[name], name)
        return sorted(best.values())

    def case(self, world: World, name: str, setting: Setting) -> None:
        """Measure one."""
        record, began = {"world": world.name, "case": name}, time.monotonic()
        if self.deadline - began < self._usual_took.get(world.name, 0.0):
            record["failed"] = "skipped: no time left"
        else:
            record |= self._measured(world, setting)
            self._usual_took.setdefault(world.name, time.monotonic() - began)
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def _measured(self, world: World, setting: Setting) -> Record:
        try:
            found = self._alone(world, setting)
        except Exception as error:  # of memory, of a back end, whatever a compiler raises
            lacking = isinstance(error, torch.OutOfMemoryError)
            return {"failed": "out of memory" if lacking else str(error).strip().partition("\n")[0]}
        finally:
            if setting.compile:
                torch.compiler.reset()
            gc.collect()  # blocks that are checkpointed refer to themselves
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return found | self._rates(world, setting, found["seconds"])

    def _alone(self, world: World, setting: Setting) -> Record:
        """In a frame of its own, which holds the models no longer than it lasts."""
        # The first step compiles, whatever that takes; the second is the one to know.
        repeat, budget = (1, math.inf) if setting.compile else (self.repeat, self.budget)
        with switches(setting):
            return measure(Step(world, setting, self.configs, self.device), self.device, repeat, budget)

    def _rates(self, world: World, setting: Setting, seconds: float) -> Record:
        clips = setting.batch_size / seconds
        # What helped together may be a pair that was not counted ahead.
        counted = self.flops[world.name].get(setting.counted) or count_step(world, setting, self.configs)
        flops = sum(counted.values())
        return {
            "clips/s": clips,
            "TFLOP/clip": flops / TERA,
            "TFLOP/s": clips * flops / TERA,
            "of the card": clips * flops / self.rate,
        }


def measure(step: Step, device: torch.device, repeat: int, budget: float) -> Record:
    """Medians over `repeat` steps after one that warms up; over fewer where time is up, or over that one alone."""
    on_gpu = device.type == "cuda"
    weights = torch.cuda.memory_allocated(device) if on_gpu else 0
    taken: list[dict[str, float]] = []
    began = time.monotonic()
    while len(taken) <= repeat and time.monotonic() - began < budget:
        if on_gpu and len(taken) < 2:
            torch.cuda.reset_peak_memory_stats(device)
        clock = Clock(device)
        loss = step(clock)
        taken.append(dict(clock.seconds))
    measured = taken[1:] or taken
    return {
        "seconds": statistics.median(sum(one.values()) for one in measured),
        "parts": {name: statistics.median(one[name] for one in measured) for name in PARTS},
        "steps": len(measured),
        "warm": len(taken) > 1,
        "peak GiB": torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None,
        "weights GiB": weights / GIB if on_gpu else None,
        "finite": bool(loss.isfinite()),
    }


@contextmanager
def switches(setting: Setting) -> Iterator[None]:
    """torch's own, for as long as a case lasts. A back end that can't compute an attention leaves it to the others."""
    order = [*dict.fromkeys([BACKENDS[setting.attention], *BACKENDS.values()])] if setting.attention else None
    products = torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.benchmark = setting.autotune
        torch.set_float32_matmul_precision("high" if setting.tf32 else products)
        with sdpa_kernel(order, set_priority=True) if order else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision(products)


def matrix_rate(device: torch.device, size: int, rounds: int = 20) -> float:
    """FLOP/s of the product of two random bf16 matrices, as torch's own libraries make it."""
    one, other = torch.randn(2, size, size, device=device, dtype=BF16)
    clock = Clock(device)
    for phase, times in (("warm-up", 3), ("measured", rounds)):
        with clock(phase):
            for _ in range(times):
                one @ other
    return rounds * 2 * size**3 / clock.seconds["measured"]
