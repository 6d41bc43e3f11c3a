"""What a judge needs, counted on its shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rayvideo.planning.count import Census
from rayvideo.rewards import ClipJudge, Reward, options_of, resolve
from rayvideo.rewards.clip_judge import at_times
from rayvideo.sections import Judge
from rayvideo.serving.judging import scores_of, view_of
from rayvideo.serving.wire import Times, View


@dataclass(frozen=True)
class Asked:
    """A judge that was asked for one micro-batch."""

    weights: int
    """Bytes."""
    activations: int
    """Bytes that most were alive at once."""
    flops: int
    """Of scores and, if it was asked for, their gradient."""


def shapes_of(judge: Judge) -> Reward | None:
    """The judge on the meta device; None: its class does not say how it is built."""
    reward = resolve(judge.type).shapes(judge.checkpoint, **options_of(judge))
    if isinstance(reward, ClipJudge):
        reward.resize = judge.resize
    return None if reward is None else reward.eval().requires_grad_(False)


def view(judge: Judge, reward: Reward | None) -> View:
    """What it looks at; of a judge without shapes, what its class says."""
    if reward is not None:
        return view_of(reward)
    kind = resolve(judge.type)
    return View(kind.sees, kind.fps, kind.frames, kind.size) if issubclass(kind, ClipJudge) else View()


def ask(reward: Reward, shape: Sequence[int], gradient: bool, times: Times | None = None) -> Asked:
    """Let a judge on the meta device score items of this shape, [N, 3, H, W] or [N, F', 3, H, W]."""
    weights = [*reward.parameters(), *reward.buffers()]
    if isinstance(reward, ClipJudge) and times is not None:
        reward = at_times(reward, times)
    census = Census()
    census.ignore(weights)
    with census, torch.set_grad_enabled(gradient):
        items = torch.empty(*shape, device="meta", requires_grad=gradient)
        scores = scores_of(reward, items, ["a caption"] * len(items))
        if gradient:
            torch.autograd.grad(scores.sum(), items)
    return Asked(sum(one.nbytes for one in weights), census.peak.total(), census.flops.total())
