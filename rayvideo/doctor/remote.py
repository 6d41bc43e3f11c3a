"""Judges in their actors against the same judges in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.doctor.gradients import slope
from rayvideo.doctor.samples import Asked
from rayvideo.sections import Judge
from rayvideo.serving.pool import RewardPool
from rayvideo.serving.slopes import scored

MEND = (
    "the actor holds another judge than this process, or sees other frames: do all machines have the same checkpoint, "
    "package versions and code?"
)


class Local(NamedTuple):
    """What a judge in this process says."""

    asked: Asked
    scores: Tensor
    """[N], on the CPU."""
    slope: Tensor | None
    """d(score)/d(item) [N, ...], on the CPU."""


def local(asked: Asked, gradient: bool) -> Local:
    """Ask the judge in this process."""
    reward, items, captions = asked.reward, asked.items, asked.captions
    if gradient:
        scores, gradients = slope(reward, items, captions)
        return Local(asked, scores.float().cpu(), gradients.float().cpu())
    with torch.no_grad():
        return Local(asked, reward.score(items, list(captions)).float().cpu(), None)


def loaded(pool: RewardPool) -> Finding:
    """All judges are loaded in their actors."""
    pool.wait_until_ready()
    return Finding("actors", True, f"{len(pool.judges)} of {len(pool.judges)} judges are loaded")


def compare(pool: RewardPool, here: Mapping[str, Local], gradient: bool) -> Finding:
    """Every judge's scores and gradients from the pool against what this process has."""
    limit = thresholds.REMOTE if all(j.dtype == "fp32" for j in pool.judges) else thresholds.REMOTE_REDUCED
    away = {}
    for judge in pool.judges:
        asked = here[judge.name].asked
        leaf = asked.items.detach().cpu().clone().requires_grad_(gradient)
        away[judge.name] = leaf, pool.send(leaf, asked.captions, [judge], gradient, asked.times)
    scores_apart, slopes_apart = {}, []
    for name, (leaf, sent) in away.items():
        scores, expected, answer = here[name].scores, here[name].slope, pool.receive(sent)[name]
        far = (answer.scores - scores).abs().max() / scores.abs().max().clamp(min=1e-12)
        scores_apart[name] = far.item()
        if expected is not None:
            (there,) = torch.autograd.grad(scored(sent.items, answer.scores, answer.slope).sum(), leaf)
            slopes_apart.append(((there - expected).norm() / expected.norm().clamp(min=1e-20)).item())
    told = ", ".join(f"{far:.1g}" + f" ({name})" * (len(here) > 1) for name, far in scores_apart.items())
    measured = f"scores differ by {told}"
    if slopes_apart:
        measured += f", gradients by {max(slopes_apart):.1g}, relative"
    ok = max([*scores_apart.values(), *slopes_apart]) <= limit
    return Finding("actor against local", ok, measured, MEND)


def weights(judges: Sequence[Judge], here: Mapping[str, Local]) -> Finding:
    """How loud each judge is: the norm of its weighted gradient."""
    name = "weights"
    if len({known.asked.times is None for known in here.values()}) > 1:
        told = "gradients by frames and by clips can't be compared here; see judge_gradient_norm of the run"
        return Finding(name, None, told)
    loud = {judge.name: abs(judge.weight) * torch.as_tensor(here[judge.name].slope).norm().item() for judge in judges}
    total, quietest = sum(loud.values()), min(loud, key=lambda judge: loud[judge])
    return Finding(
        name,
        max(loud.values()) <= thresholds.LOUDEST * loud[quietest],
        "weighted gradients: " + ", ".join(f"{name} {norm / total:.1%}" for name, norm in loud.items()),
        f"{quietest!r} has no say: raise its weight, or leave it out",
    )
