"""Is a judge's gradient there, is it right, and is it each frame's, or each clip's, own?

Items, here, are frames [N, 3, H, W] or clips [N, F', 3, H, W], as the judge sees; of clips it is told the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.rewards import Reward
from rayvideo.seeding import generator_for
from rayvideo.serving.judging import plural, singular


def slope(reward: Reward, items: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Scores [N] and d(sum of scores)/d(items) [N, ...] of items [N, ...] in [0, 1]."""
    leaf = items.clone().requires_grad_()
    scores = reward.score(leaf, list(prompts))
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), gradient


def attached(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """Every item gets a finite gradient that is not zero."""
    name = "gradient"
    mend = (
        f"score() must stay in torch from {plural(reward)} to scores: look for .detach(), .item(), no_grad(), numpy, "
        "round() or a clamp at its edge; or say differentiable = False in the class and train with objective rwr or "
        "ddpo"
    )
    leaf = items.clone().requires_grad_()
    scores = reward.score(leaf, list(prompts))
    if not scores.requires_grad:
        return Finding(name, False, "detached: scores have no graph", mend)
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    (gradient,) = slopes
    if gradient is None:
        return Finding(name, False, f"detached: the scores' graph does not reach the {plural(reward)}", mend)
    norms = gradient.flatten(1).norm(dim=1)
    if not norms.isfinite().all():
        return Finding(
            name, False, f"NaN or Inf for {int((~norms.isfinite()).sum())} of {len(norms)} {plural(reward)}", mend
        )
    if not norms.all():
        return Finding(name, False, f"exactly 0 for {int((norms == 0).sum())} of {len(norms)} {plural(reward)}", mend)
    return Finding(name, True, f"norm {norms.mean():.3g} a {singular(reward)} ({norms.min():.3g} to {norms.max():.3g})")


def paired(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """Each score of a batch belongs to its own item and caption: the same alone, and no gradient by other items."""
    one, many = singular(reward), plural(reward)
    name = f"own {one} and caption"
    mend = f"score() must keep the order of {many} and prompts, use both of each pair, and treat {many} independently"
    exact = next((p.dtype for p in reward.parameters()), torch.float32) == torch.float32
    limit = thresholds.PAIRED if exact else thresholds.PAIRED_REDUCED
    with torch.no_grad():
        together = reward.score(items, list(prompts)).float()
        alone = torch.cat([reward.score(items[i : i + 1], [prompts[i]]).float() for i in range(len(items))])
    apart = ((together - alone).abs().max() / alone.abs().max().clamp(min=1e-12)).item()
    if apart > limit:
        measured = f"in a batch, scores differ by {apart:.2g} of the largest from the same {many} alone"
        return Finding(name, False, measured, mend)
    measured = f"scores differ by {apart:.1g} from those alone"
    if reward.differentiable and len(items) > 1:
        leaf = items.clone().requires_grad_()
        scores = reward.score(leaf, list(prompts))
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores[0], leaf)
            right, wrong = gradient[0].norm().item(), gradient[1:].norm().item()
            if wrong > thresholds.LEAK * right:
                measured = f"a score's gradient by other {many}: {wrong:.2g}, by its own {right:.2g}"
                return Finding(name, False, measured, mend)
    return Finding(name, True, measured)


def finite_differences(reward: Reward, items: Tensor, prompts: Sequence[str], seed: int) -> Finding:
    """The gradient against central differences of the scores in fp32, along seeded directions.

    Directions: noise, which sees parts of the true gradient that the claimed one lacks, and the claimed gradient with
    random pixels left out, along which scores change most.
    """
    name = "finite differences"
    generator = generator_for(seed, "doctor", "directions")
    inside = 0.05 + 0.9 * items  # steps must not leave [0, 1], where judges may clamp
    _, gradient = slope(reward, inside, prompts)
    noise = torch.randn(items.shape, generator=generator).to(items.device)
    some = gradient * (torch.rand(items.shape, generator=generator).to(items.device) < 0.5)
    # A convolution in TF32 would not see the smaller steps.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        errors = [_error(reward, inside, prompts, gradient, direction) for direction in (noise, some)]
    measured = f"off by {errors[0]:.1g} along noise, {errors[1]:.1g} along the gradient"
    mend = (
        "the gradient is not that of the score: look for a part of score() that is detached, a custom backward(), or "
        "randomness (dropout)"
    )
    return Finding(name, max(errors) <= thresholds.FINITE_DIFFERENCES, measured, mend)


@torch.no_grad()
def _error(reward: Reward, items: Tensor, prompts: Sequence[str], gradient: Tensor, direction: Tensor) -> float:
    """Relative error of the claimed derivative along `direction`, at the step whose neighbour agrees best with it."""
    rms = direction.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (items.ndim - 1))
    direction = direction / rms
    claimed = (gradient * direction).flatten(1).sum(1)
    slopes = []
    for step in thresholds.DIFFERENCE_STEPS:
        up, down = (reward.score(items + sign * step * direction, list(prompts)) for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    gaps = [(after - before).norm().item() for before, after in pairwise(slopes)]
    best = slopes[gaps.index(min(gaps)) + 1]
    # Noise may happen to be nearly orthogonal to the gradient: what is left of the slope is then the scores' rounding.
    scale = max(best.norm().item(), claimed.norm().item(), gradient.norm().item(), 1e-20)
    return (best - claimed).norm().item() / scale


def reduced(reward: Reward, exact: Reward, items: Tensor, prompts: Sequence[str], dtype: str) -> Finding:
    """The gradient of a judge in bf16 or fp16 points where the fp32 one does."""
    (_, rough), (_, fine) = slope(reward, items, prompts), slope(exact, items, prompts)
    cosine = torch.cosine_similarity(rough.flatten(1), fine.flatten(1)).mean().item()
    return Finding(
        f"gradient in {dtype}",
        cosine >= thresholds.REDUCED_COSINE,
        f"cosine {cosine:.3f} with the fp32 judge's",
        f"the judge is too delicate for {dtype}: set dtype to fp32" + (", or bf16" if dtype == "fp16" else ""),
    )
