"""Memory of each worker and judge, and time of a step, out of what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayvideo.planning.rehearsal import DECODER, DENOISER, Rehearsal
from rayvideo.recipe import Recipe
from rayvideo.training import objectives
from rayvideo.training.trainer import how_far_ahead

GIB = 2**30
CONTEXT = int(0.6 * GIB)
"""What CUDA, its kernels and its libraries take in each process before the first tensor; not measured here."""
FRAGMENTATION = 0.08
"""Share of what comes and goes that an allocator holds beside it; not measured here."""

Rows = dict[str, int]
"""What takes memory -> bytes."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second."""

    flops: float
    source: str
    """Where that comes from: given, measured, assumed."""
    link: float = 100e9
    """Bytes between workers, and"""
    host: float = 20e9
    """between a GPU and its machine's memory: assumed."""


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes."""

    worker: Rows
    """Bytes on the device of each worker."""
    host: int
    """Bytes of offloaded weights in the memory of the workers' machines, over all workers."""
    judges: dict[str, Rows | None]
    """Bytes on the device of each copy of a judge; None: unknown."""
    seconds: float
    """Of an optimizer step, at least: operators that are no matrix products or convolutions take no time here."""
    clips: int
    """In an optimizer step."""

    @property
    def counted(self) -> int:
        """Of a worker, without what is only assumed."""
        return sum(size for name, size in self.worker.items() if name != RESERVE)


RESERVE = "reserve"


def estimate(recipe: Recipe, counted: Rehearsal, rates: Rates, batch: int | None = None) -> Estimate:
    """What `recipe` takes, by a rehearsal of it or of one that differs in workers, batches and ZeRO stage only.

    Args:
        batch: Clips of the rehearsal; default: the recipe's. What comes and goes grows in proportion.
    """
    training = recipe.training
    workers = training.workers.min
    accumulation = training.accumulation_of(workers)
    scale = training.batch_size / (batch or training.batch_size)
    on_gpu = training.gpus_per_worker > 0
    stays = min(how_far_ahead(recipe, objectives.resolve(training.objective)), accumulation - 1)

    def alive(part: str) -> int:
        return int(scale * (counted.peak[part] + stays * counted.kept[part]))

    worker = {
        "denoiser": _share(recipe, counted, workers),
        "VAE": counted.vae,
        "gathered weights": _gathered(recipe, counted),
        "adapter and optimizer": adapter_bytes(counted.trainable, training.zero_stage, workers),
        "activations": alive(DENOISER),
        "decode window": alive(DECODER),
    }
    return Estimate(
        worker=_reserved(worker, alive(DENOISER) + alive(DECODER), on_gpu),
        host=counted.frozen if training.offload == "cpu" else 0,
        judges={judge.name: _judge(counted, judge.name, judge.num_gpus > 0) for judge in recipe.reward.judges},
        seconds=accumulation * _seconds(recipe, counted, rates, scale, workers),
        clips=training.global_batch,
    )


def adapter_bytes(numbers: int, zero_stage: int, workers: int) -> int:
    """Of an adapter of fp32 `numbers`: weights, gradients and AdamW's two moments, as DeepSpeed holds them.

    Stages 1 to 3 share the moments and a copy of the weights out; all but stage 0 add up gradients in a bucket as large
    as the adapter. Stage 3 shares weights and gradients too, but gathers the weights to compute with them.
    """
    if zero_stage == 0:
        return 4 * numbers * (1 + 1 + 2)
    return 4 * numbers * (1 + 1 + 1) + 4 * numbers * (1 + 1 + 2) // workers


def _share(recipe: Recipe, counted: Rehearsal, workers: int) -> int:
    if recipe.training.offload == "cpu":
        return 0
    return counted.frozen // workers if recipe.training.zero_stage == 3 else counted.frozen


def _gathered(recipe: Recipe, counted: Rehearsal) -> int:
    if recipe.training.zero_stage < 3:
        return 0
    return int(counted.frozen * min(1, recipe.training.zero3.live / counted.frozen_numbers))


def _judge(counted: Rehearsal, name: str, on_gpu: bool) -> Rows | None:
    asked = counted.judges[name]
    if asked is None:
        return None
    return _reserved({"weights": asked.weights, "activations": asked.activations}, asked.activations, on_gpu)


def _reserved(rows: Mapping[str, int], moving: int, on_gpu: bool) -> Rows:
    """With what a GPU's process and its allocator take beside it; other machines have room elsewhere."""
    return {**rows, RESERVE: CONTEXT + int(FRAGMENTATION * moving)} if on_gpu else dict(rows)


def _seconds(recipe: Recipe, counted: Rehearsal, rates: Rates, scale: float, workers: int) -> float:
    """Of one micro-batch on one worker. Judges work meanwhile, unless nothing can be made while they do."""
    training = recipe.training
    computing = scale * sum(counted.flops.values()) / rates.flops
    foreign = counted.frozen * (workers - 1) / workers if training.zero_stage == 3 else 0
    fetched = counted.frozen / workers if training.offload == "cpu" else 0
    return computing + counted.passes * (foreign / rates.link + fetched / rates.host)
