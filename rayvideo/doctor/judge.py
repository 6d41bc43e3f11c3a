"""All that is asked of one judge in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rayvideo.doctor import gradients, pixels, ranking
from rayvideo.doctor.finding import Finding, attempt
from rayvideo.doctor.samples import Samples
from rayvideo.rewards import Reward, RewardError, load_reward
from rayvideo.sections import Judge
from rayvideo.serving.judging import scores_of

PROBES = 2
"""Frames whose gradient is compared with finite differences: each takes dozens of forward passes."""


def examine_judge(judge: Judge, reward: Reward, samples: Samples, seed: int, device: torch.device) -> Iterator[Finding]:
    """One finding after another of `reward`, which is `judge` loaded on `device`; one that can't answer ends it."""
    flat, captions = samples.flat()
    flat = flat.to(device)
    single, own = samples.one_each()
    single = single.to(device)
    first = attempt("answers", answers, reward, flat, captions)
    yield first
    if not first.ok:
        return
    yield attempt("score scale", ranking.scale, reward, flat, captions)
    yield from _gradients(judge, reward, flat, captions, (single[:PROBES], own[:PROBES]), seed, device)
    yield attempt("own frame and caption", gradients.paired, reward, single, own)
    yield attempt("normalisation", pixels.normalisation, reward, single, own)
    yield attempt("resize and antialias", pixels.resize, reward, flat, captions)
    yield attempt("clean above degraded", ranking.quality, reward, flat, captions)
    yield attempt("right above wrong caption", ranking.caption, reward, single, own)


@torch.no_grad()
def answers(reward: Reward, frames: Tensor, prompts: Sequence[str]) -> Finding:
    """One finite score a frame, and the same when asked again."""
    name = "answers"
    try:
        scores, again = (scores_of(reward, frames, list(prompts)) for _ in range(2))
    except RewardError as error:
        return Finding(name, False, str(error), "score() must return one number a frame, [N]")
    if not scores.isfinite().all():
        mend = "look for a logarithm, root or division in score(), or set the judge's dtype to fp32"
        return Finding(name, False, f"NaN or Inf for {int((~scores.isfinite()).sum())} of {len(frames)} frames", mend)
    if not torch.allclose(scores, again, rtol=1e-3, atol=1e-6):
        mend = "score() must be a function of frames and captions: call eval(), seed or remove what is random"
        return Finding(name, False, "asked twice, it gave different scores", mend)
    return Finding(name, True, f"one finite score for each of {len(frames)} frames, the same when asked again")


def _gradients(
    judge: Judge,
    reward: Reward,
    frames: Tensor,
    captions: list[str],
    probes: tuple[Tensor, list[str]],
    seed: int,
    device: torch.device,
) -> Iterator[Finding]:
    if not reward.differentiable:
        yield Finding("gradient", None, "its class says differentiable = False")
        return
    attached = attempt("gradient", gradients.attached, reward, frames, captions)
    yield attached
    if not attached.ok:
        yield Finding("finite differences", None, "there is no gradient to compare")
        return
    exact = reward
    if judge.dtype != "fp32":
        exact = load_reward(judge.model_copy(update={"dtype": "fp32"}), device)
        yield attempt(f"gradient in {judge.dtype}", gradients.reduced, reward, exact, *probes, judge.dtype)
    yield attempt("finite differences", gradients.finite_differences, exact, *probes, seed)
