"""What of a frame reaches a judge's network: normalisation and resize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.doctor.gradients import slope
from rayvideo.rewards import ClipJudge, Reward
from rayvideo.rewards.clip_judge import AtTimes
from rayvideo.rewards.towers import ImageTower

CONVENTIONS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "CLIP's": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of each channel, for pixels in [0, 1]."""


@torch.no_grad()
def normalisation(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """Which mean and deviation pixels are really normalised by, from what the first layer gets for black, grey, white.

    A resize leaves plain pictures as they are. Compared with the `mean` and `std` that the judge declares, as
    `ImageTower` does, else with the conventions.
    """
    name = "normalisation"
    seen = _seen(reward, torch.stack([torch.full_like(items[0], level) for level in (0.0, 0.5, 1.0)]), prompts)
    if seen is None:
        return Finding(name, None, "no layer of the judge takes pictures of three channels")
    black, grey, white = seen
    gain = white - black
    if not (gain.abs() > 1e-6).all():
        return Finding(
            name, False, "black and white frames reach the network alike", "score() loses its frames' pixels"
        )
    mean, std = -black / gain, 1 / gain
    if (((grey - black) / gain) - 0.5).abs().max() > thresholds.NORMALISATION:
        return Finding(
            name,
            False,
            "not affine: grey does not lie midway between black and white in what the network gets",
            "score() clamps or curves pixels before its network; frames come in [0, 1], normalise them once",
        )
    found = f"mean {_numbers(mean)}, sd {_numbers(std)}"
    judge = reward.judge if isinstance(reward, AtTimes) else reward
    declared = getattr(judge, "mean", None), getattr(judge, "std", None)
    if isinstance(declared[0], Tensor) and isinstance(declared[1], Tensor):
        told = declared[0].flatten().cpu(), declared[1].flatten().cpu()
        return Finding(
            name,
            _same(mean, std, *told),
            f"{found}; declared: mean {_numbers(told[0])}, sd {_numbers(told[1])}",
            "frames reach the network with another normalisation than the judge declares: they come in [0, 1] and are "
            "to be normalised once, neither twice nor from [-1, 1] or [0, 255]",
        )
    known = [which for which, (m, s) in CONVENTIONS.items() if _same(mean, std, torch.tensor(m), torch.tensor(s))]
    if known:
        return Finding(name, True, f"{found}: {known[0]}")
    return Finding(
        name,
        False,
        f"{found}: no convention, and the judge declares none",
        "frames come in [0, 1]; normalise them as the network was trained, once. If this is how, say so: buffers mean "
        "and std in the judge, as rayvideo.rewards.towers.ImageTower has",
    )


def _seen(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Tensor | None:
    """What the first layer with weights gets in the middle of each item: [N, 3] on the CPU; None if it sees none.

    Of a clip, whose frames are all alike here, it is its first frame.
    """
    caught: list[Tensor] = []
    each = items.shape[1] if items.ndim == 5 else 1  # frames of an item

    def catch(module: nn.Module, arguments: Any) -> None:
        first = arguments[0] if arguments else None
        has_weights = next(module.parameters(recurse=False), None) is not None
        if caught or not has_weights or not isinstance(first, Tensor) or not first.is_floating_point():
            return
        if first.ndim not in (4, 5):
            return
        middle = first[..., first.shape[-2] // 2, first.shape[-1] // 2].float().cpu()
        if middle.ndim == 2 and middle.shape == (len(items) * each, 3):  # frames, those of a clip in a row
            caught.append(middle[::each])
        elif middle.ndim == 3 and len(middle) == len(items) and 3 in middle.shape[1:]:  # clips, channels first or last
            caught.append(middle[:, :, 0] if middle.shape[1] == 3 else middle[:, 0])

    hook = register_module_forward_pre_hook(catch)
    try:
        reward.score(items, [prompts[0]] * len(items))
    finally:
        hook.remove()
    return caught[0] if caught else None


def _same(mean: Tensor, std: Tensor, told_mean: Tensor, told_std: Tensor) -> bool:
    limit = thresholds.NORMALISATION
    return bool((mean - told_mean).abs().max() <= limit and (std / told_std - 1).abs().max() <= limit)


def _numbers(values: Tensor) -> str:
    return "(" + " ".join(f"{value:.3g}" for value in values.tolist()) + ")"


def resize(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """What the recipe's resize costs against the other one: scores, gradient, and pixels that get none."""
    name = "resize and antialias"
    judge = reward.judge if isinstance(reward, AtTimes) else reward
    if not isinstance(judge, ImageTower | ClipJudge) or judge.size is None:
        return Finding(name, None, "the judge resizes in its own way, if at all")
    shape = f"{items.shape[-2]}x{items.shape[-1]}"
    if items.shape[-2:] == torch.Size(judge.size):
        return Finding(name, True, f"frames of {shape} are what the network takes: nothing is resized")
    if not reward.differentiable:
        return Finding(name, None, "its class says differentiable = False")
    chosen = judge.resize
    scores, gradient = slope(reward, items, prompts)
    with _resized(judge, "bicubic" if chosen == "bilinear" else "bilinear"):
        other_scores, other_gradient = slope(reward, items, prompts)
    shift = ((scores - other_scores).abs().mean() / scores.std().clamp(min=1e-12)).item()
    cosine = torch.cosine_similarity(gradient.flatten(1), other_gradient.flatten(1)).mean().item()
    blind = (gradient == 0).all(-3).float().mean().item() if chosen == "bilinear" else 0.0
    return Finding(
        name,
        shift <= thresholds.RESIZE and blind <= thresholds.BLIND,
        f"{shape} to {judge.size[0]}x{judge.size[1]}, {chosen}: with the other resize scores differ by {shift:.2f} "
        f"sd, gradients' cosine {cosine:.2f}; {blind:.0%} of pixels get no gradient",
        "set the judge's resize to 'bicubic', its official, antialiased one"
        if chosen == "bilinear"
        else "clips of another shape than the network's square lose their borders or get bars: set data.height and "
        "data.width alike, or know that 'bilinear' scores differ",
    )


@contextmanager
def _resized(judge: ImageTower | ClipJudge, mode: Any) -> Iterator[None]:
    before, judge.resize = judge.resize, mode
    try:
        yield
    finally:
        judge.resize = before
