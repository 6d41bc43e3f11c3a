"""FLOPs of a step, counted by torch on the meta device: no weights, no GPU, no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.cases import Setting, World
from benchmarks.gpu.step import Step

Counts = dict[str, dict[str, dict[str, float]]]
"""World -> `Setting.counted` -> part of a step -> FLOPs of a clip."""


def count(worlds: tuple[World, ...], configs: Path) -> Counts:
    """What the cases of these worlds take."""
    return {
        world.name: {
            setting.counted: count_step(world, setting, configs)
            for setting in {setting.counted: setting for setting in world.settings().values()}.values()
        }
        for world in worlds
    }


def count_step(world: World, setting: Setting, configs: Path) -> dict[str, float]:
    """FLOPs of a clip by part: of matrix products, convolutions and attention, which are nearly all."""
    step = Step(world, replace(setting, batch_size=1, compile=False), configs, torch.device("meta"))
    whole, gradient = step.chain.steps, world.editing.grad_steps
    step.chain = step.chain.last(gradient + 1)  # the rollout's steps are alike: one is counted
    found: dict[str, float] = {}
    with FlopCounterMode(display=False) as counter:

        @contextmanager
        def part(name: str) -> Iterator[None]:
            before = counter.get_total_flops()
            yield
            found[name] = float(counter.get_total_flops() - before)

        step(part)
    found["rollout"] *= whole - gradient
    return found
