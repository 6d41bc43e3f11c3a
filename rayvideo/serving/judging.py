"""What a judge does with frames or clips: scores and their gradients, in forward passes that are all of one shape.

Items, here, are what a judge scores one by one: frames [N, 3, H, W], or clips [N, F', 3, H, W] with the times of their
frames.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayvideo.rewards import clip_judge, function_judge
from rayvideo.rewards.base import Reward, RewardError
from rayvideo.rewards.clip_judge import ClipJudge, at_times
from rayvideo.rewards.towers import ImageTower
from rayvideo.serving.wire import Times, View

Array = npt.NDArray[np.float32]

MICRO_BATCH = 8

OURS = {__file__, clip_judge.__file__, function_judge.__file__}
"""Files whose lines a traceback is shown without: the judge's code says more."""


def view_of(reward: Reward) -> View:
    """What a loaded judge looks at, for those who choose, resize and send it."""
    if isinstance(reward, ClipJudge):
        return View(reward.sees, reward.fps, reward.frames, reward.size, reward.resize, reward.framing)
    return (
        View(size=reward.size, resize=reward.resize, framing=reward.framing)
        if isinstance(reward, ImageTower)
        else View()
    )


def judge_items(
    reward: Reward,
    items: Array,
    prompts: Sequence[str],
    gradient: bool,
    device: torch.device,
    micro_batch: int = MICRO_BATCH,
    times: Times | None = None,
) -> tuple[Array, Array | None]:
    """Score items [N, ...] in [0, 1] and, if asked, differentiate each score by its own item.

    Returns:
        Scores [N] and gradients [N, ...] or None, both fp32.

    Raises:
        RewardError: scores of another shape than [N]; NaN or Inf in scores or gradients; whatever the judge raises.
    """
    scores, slopes = judge_rows(reward, torch.tensor(items), prompts, gradient, device, micro_batch, times)
    check_rows(reward.name, scores, slopes, prompts)
    return scores.numpy(), None if slopes is None else slopes.numpy()


def judge_rows(
    reward: Reward,
    items: Tensor,
    prompts: Sequence[str],
    gradient: bool,
    device: torch.device,
    micro_batch: int,
    times: Times | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scores [N] and gradients [N, ...], as fp32 on the CPU, of items [N, ...]; `times` are those of clips' frames.

    Every forward pass is of `micro_batch` items, the last one filled up with copies: in the last bits, numbers depend
    on the shape of the batch, but in batches of one shape not on an item's place and neighbours.

    Raises:
        RewardError: with the traceback of the judge's code, if it raises anything but a lack of memory.
    """
    if isinstance(reward, ClipJudge) and times is not None:
        reward = at_times(reward, times)
    scores, slopes = torch.empty(len(items)), torch.empty_like(items) if gradient else None
    for start in range(0, len(items), micro_batch):
        rows, names = items[start : start + micro_batch], list(prompts[start : start + micro_batch])
        absent = micro_batch - len(rows)
        pixels = torch.cat([rows, rows[-1:].expand(absent, *rows.shape[1:])]).to(device).requires_grad_(gradient)
        judged, slope = _one_pass(reward, pixels, names + names[-1:] * absent, gradient)
        scores[start : start + micro_batch] = judged[: len(rows)]
        if slopes is not None and slope is not None:
            slopes[start : start + micro_batch] = slope[: len(rows)]
    return scores, slopes


def _one_pass(reward: Reward, pixels: Tensor, prompts: list[str], gradient: bool) -> tuple[Tensor, Tensor | None]:
    try:
        with torch.set_grad_enabled(gradient):
            scores = scores_of(reward, pixels, prompts)
        if not gradient:
            return scores, None
        slope = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)[0] if scores.requires_grad else None
        if slope is None:
            raise RewardError(f"judge {reward.name!r} returned scores that carry no gradient to the {plural(reward)}")
        return scores.detach(), slope
    except RewardError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        theirs = error.__traceback__
        while theirs and theirs.tb_frame.f_code.co_filename in OURS:
            theirs = theirs.tb_next
        trace = "".join(traceback.format_exception(type(error), error, theirs))
        raise RewardError(f"judge {reward.name!r} failed: {error!r}\n{trace.rstrip()}") from error


def scores_of(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the judge's score() says of items [N, ...]: a tensor [N]. Of clips `reward` is told the times already.

    Raises:
        RewardError: it returned anything else; the message names judge, class and what it returned.
    """
    scores: Any = reward.score(items, prompts)
    many = f"{len(items)} {plural(reward)}"
    wanted = f"allowed: a tensor [{len(items)}], one score a {singular(reward)}"
    who = f"judge {reward.name!r} (score() of {type(reward).__name__}) returned"
    if not isinstance(scores, Tensor):
        raise RewardError(f"{who} {_described(scores)} for {many}; {wanted}")
    if scores.shape != (len(items),):
        raise RewardError(f"{who} scores of shape {list(scores.shape)} for {many}; {wanted}")
    if scores.is_complex():
        raise RewardError(f"{who} complex numbers; {wanted}")
    return scores


def singular(reward: Reward) -> str:
    """What a judge scores, in words: a "frame" or a "clip"."""
    return reward.sees.removesuffix("s")


def plural(reward: Reward) -> str:
    """What a judge scores, in words: "frames" or "clips"."""
    return f"{singular(reward)}s"


def _described(value: object) -> str:
    """What something that should have been a tensor is."""
    if isinstance(value, np.ndarray):
        return f"a numpy array {list(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, float | int) else type(value).__name__


def check_rows(name: str, scores: Tensor, slopes: Tensor | None, prompts: Sequence[str]) -> None:
    """Refuse NaN and Inf in scores [N] and gradients [N, ...].

    Raises:
        RewardError: naming the judge and the captions.
    """
    for what, values in (("score", scores), ("gradient", slopes)):
        if values is None:
            continue
        finite = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
        if not finite.all():
            captions = sorted({prompts[i] for i in (~finite).nonzero().flatten().tolist()})
            raise RewardError(f"judge {name!r} gave NaN or Inf as {what} for captions {captions}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's or the CPU's allocator raised it; the latter has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
