"""A small training loop for the menagerie's own networks: seeded, resumable, with averaged weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

Losses = dict[str, Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]


def ranks() -> tuple[int, int]:
    """This process's number, and how many train together: (0, 1) unless `torchrun` started them."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def fit(
    name: str,
    modules: Mapping[str, nn.Module],
    losses_of: Callable[[int], Losses],
    *,
    steps: int,
    lr: float,
    work: Path,
    average: float = 0.998,
    weight_decay: float = 0.01,
    save_every: int = 200,
) -> None:
    """Minimise the sum of `losses_of(draw)` over the modules' parameters and leave their moving averages in place.

    AdamW with warm-up and cosine decay. `losses_of` must draw its batch from `draw` alone, which is the step, or
    with several processes as many draws a step as there are; then a run that was killed goes on from `work/name.pt`
    with the same numbers. Processes average their gradients and so hold the same weights.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    network = nn.ModuleDict(dict(modules)).train()
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=_moving_average(average))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    warmup = min(100, max(1, steps // 10))

    def rate(step: int) -> float:
        decay = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
        return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * decay)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts: dict[str, Any] = {"network": network, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    file, first = work / f"{name}.pt", 0
    rank, count = ranks()
    if file.is_file():
        saved = torch.load(file, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        first = int(saved["step"])
    progress = tqdm(
        range(first, steps), desc=name, initial=first, total=steps, mininterval=2, dynamic_ncols=True, disable=rank > 0
    )
    for step in progress:
        draw = step * count + rank
        torch.manual_seed(draw)
        losses = losses_of(draw)
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            shown = {key: value.item() for key, value in losses.items()}
            raise FloatingPointError(f"{name}: loss at step {step} is not finite: {shown}")
        optimizer.zero_grad()
        total.backward()
        if count > 1:
            _average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
        if step % 10 == 0:
            progress.set_postfix({key: f"{value.item():.4f}" for key, value in losses.items()}, refresh=False)
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            _save({**{key: part.state_dict() for key, part in parts.items()}, "step": step + 1}, file)
    network.load_state_dict(averaged.module.state_dict())
    network.eval().requires_grad_(False)


def _average_gradients(network: nn.Module) -> None:
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential average that forgets its first, untrained weights: the decay grows with the updates seen."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, seen: Tensor | int) -> None:
        count = int(seen)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update


def _save(state: dict[str, object], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)
