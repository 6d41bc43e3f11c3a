"""All that is asked of one judge in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rayvideo.doctor import gradients, pixels, ranking
from rayvideo.doctor.finding import Finding, attempt
from rayvideo.doctor.samples import Samples
from rayvideo.rewards import ClipJudge, Reward, RewardError, load_reward
from rayvideo.rewards.clip_judge import at_times
from rayvideo.sections import Judge
from rayvideo.serving.judging import plural, scores_of, singular
from rayvideo.serving.wire import Times

PROBES = 2
"""Frames, or clips, whose gradient is compared with finite differences: each takes dozens of forward passes."""


def examine_judge(judge: Judge, reward: Reward, samples: Samples, seed: int, device: torch.device) -> Iterator[Finding]:
    """One finding after another of `reward`, which is `judge` loaded on `device`; one that can't answer ends it."""
    reward, items, captions, single, single_captions, times = samples.asked(reward, device)
    first = attempt("answers", answers, reward, items, captions)
    yield first
    if not first.ok:
        return
    yield attempt("score scale", ranking.scale, reward, items, captions)
    probes = single[:PROBES], single_captions[:PROBES]
    yield from _gradients(judge, reward, items, captions, probes, seed, device, times)
    yield attempt(f"own {singular(reward)} and caption", gradients.paired, reward, single, single_captions)
    yield attempt("normalisation", pixels.normalisation, reward, single, single_captions)
    yield attempt("resize and antialias", pixels.resize, reward, items, captions)
    yield attempt("clean above degraded", ranking.quality, reward, items, captions)
    yield attempt("right above wrong caption", ranking.caption, reward, single, single_captions)


def from_files(judge: Judge, reward: Reward) -> Finding:
    """`reward` has the weights that `judge` has when it is loaded again, after other random numbers."""
    name = "weights from files"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.seed()
        again = load_reward(judge).state_dict()
    here = reward.state_dict()
    drawn = [weight for weight, value in here.items() if not torch.equal(value.cpu(), again[weight])]
    if drawn:
        mend = "load() must fill every layer from the judge's files: is one of them missing there, or named otherwise?"
        return Finding(name, False, f"{len(drawn)} of {len(here)} tensors are random, as {drawn[0]}", mend)
    return Finding(name, True, f"loaded twice, all of its {len(here)} tensors are the same")


@torch.no_grad()
def answers(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """One finite score an item, and the same when asked again."""
    name = "answers"
    try:
        scores, again = (scores_of(reward, items, list(prompts)) for _ in range(2))
    except RewardError as error:
        return Finding(name, False, str(error), f"score() must return one number a {singular(reward)}, [N]")
    if not scores.isfinite().all():
        mend = "look for a logarithm, root or division in score(), or set the judge's dtype to fp32"
        return Finding(
            name, False, f"NaN or Inf for {int((~scores.isfinite()).sum())} of {len(items)} {plural(reward)}", mend
        )
    if not torch.allclose(scores, again, rtol=1e-3, atol=1e-6):
        mend = (
            f"score() must be a function of {plural(reward)} and captions: call eval(), seed or remove what is random"
        )
        return Finding(name, False, "asked twice, it gave different scores", mend)
    return Finding(name, True, f"one finite score for each of {len(items)} {plural(reward)}, the same when asked again")


def _gradients(
    judge: Judge,
    reward: Reward,
    items: Tensor,
    captions: list[str],
    probes: tuple[Tensor, list[str]],
    seed: int,
    device: torch.device,
    times: Times | None,
) -> Iterator[Finding]:
    if not reward.differentiable:
        yield Finding("gradient", None, "its class says differentiable = False")
        return
    attached = attempt("gradient", gradients.attached, reward, items, captions)
    yield attached
    if not attached.ok:
        yield Finding("finite differences", None, "there is no gradient to compare")
        return
    exact = reward
    if judge.dtype != "fp32":
        exact = load_reward(judge.model_copy(update={"dtype": "fp32"}), device)
        if isinstance(exact, ClipJudge) and times is not None:
            exact = at_times(exact, times)
        yield attempt(f"gradient in {judge.dtype}", gradients.reduced, reward, exact, *probes, judge.dtype)
    yield attempt("finite differences", gradients.finite_differences, exact, *probes, seed)
