"""Judges in their actors against the same judges in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.doctor.gradients import slope
from rayvideo.rewards import Reward
from rayvideo.sections import Judge
from rayvideo.serving.pool import RewardPool

MEND = (
    "the actor holds another judge than this process, or sees other frames: do all machines have the same checkpoint, "
    "package versions and code?"
)


class Local(NamedTuple):
    """What a judge in this process says."""

    scores: Tensor
    """[N], on the CPU."""
    slope: Tensor | None
    """d(score)/d(frame) [N, 3, H, W], on the CPU."""


def local(reward: Reward, frames: Tensor, prompts: Sequence[str], gradient: bool) -> Local:
    """Ask the judge in this process."""
    if gradient:
        scores, own = slope(reward, frames, prompts)
        return Local(scores.float().cpu(), own.float().cpu())
    with torch.no_grad():
        return Local(reward.score(frames, list(prompts)).float().cpu(), None)


def loaded(pool: RewardPool) -> Finding:
    """All judges are loaded in their actors."""
    pool.wait_until_ready()
    return Finding("actors", True, f"{len(pool.judges)} of {len(pool.judges)} judges are loaded")


def compare(
    pool: RewardPool, here: Mapping[str, Local], frames: Tensor, prompts: Sequence[str], gradient: bool
) -> Finding:
    """Every judge's scores, and the gradient of their weighted sum, from the pool against what this process has."""
    leaf = frames.clone().requires_grad_(gradient)
    pending = pool.submit(leaf, list(prompts), gradient=gradient)
    total = pool.result(pending)
    limit = thresholds.REMOTE if all(j.dtype == "fp32" for j in pool.judges) else thresholds.REMOTE_REDUCED
    apart = {
        name: ((pending.raw[name].cpu() - own.scores).abs().max() / own.scores.abs().max().clamp(min=1e-12)).item()
        for name, own in here.items()
    }
    measured = "scores differ by " + ", ".join(f"{far:.1g}" + f" ({n})" * (len(here) > 1) for n, far in apart.items())
    if gradient:
        (there,) = torch.autograd.grad(total.sum(), leaf)
        expected = torch.zeros_like(frames)
        for judge in pool.judges:
            expected += judge.weight * torch.as_tensor(here[judge.name].slope)
        apart["gradient"] = ((there - expected).norm() / expected.norm().clamp(min=1e-20)).item()
        measured += f", gradients by {apart['gradient']:.1g}, relative"
    return Finding("actor against local", max(apart.values()) <= limit, measured, MEND)


def weights(judges: Sequence[Judge], here: Mapping[str, Local]) -> Finding:
    """How loud each judge is: the norm of its weighted gradient."""
    loud = {judge.name: abs(judge.weight) * torch.as_tensor(here[judge.name].slope).norm().item() for judge in judges}
    total, quietest = sum(loud.values()), min(loud, key=lambda name: loud[name])
    return Finding(
        "weights",
        max(loud.values()) <= thresholds.LOUDEST * loud[quietest],
        "weighted gradients: " + ", ".join(f"{name} {norm / total:.1%}" for name, norm in loud.items()),
        f"{quietest!r} has no say: raise its weight, or leave it out",
    )
