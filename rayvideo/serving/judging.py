"""What a judge does with frames: scores and d(score)/d(frames), in forward passes that are all of the same shape."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayvideo.rewards.base import Reward, RewardError

Array = npt.NDArray[np.float32]

MICRO_BATCH = 8


def judge_frames(
    reward: Reward,
    frames: Array,
    prompts: Sequence[str],
    gradient: bool,
    device: torch.device,
    micro_batch: int = MICRO_BATCH,
) -> tuple[Array, Array | None]:
    """Score frames [N, 3, H, W] in [0, 1] and, if asked, differentiate each score by its own frame.

    Returns:
        Scores [N] and gradients [N, 3, H, W] or None, both fp32.

    Raises:
        RewardError: scores of another shape than [N]; NaN or Inf in scores or gradients; whatever the judge raises.
    """
    scores, slopes = judge_rows(reward, torch.tensor(frames), prompts, gradient, device, micro_batch)
    check_rows(reward.name, scores, slopes, prompts)
    return scores.numpy(), None if slopes is None else slopes.numpy()


def judge_rows(
    reward: Reward, frames: Tensor, prompts: Sequence[str], gradient: bool, device: torch.device, micro_batch: int
) -> tuple[Tensor, Tensor | None]:
    """Scores [N] and gradients [N, 3, H, W], as fp32 on the CPU, of frames [N, 3, H, W].

    Every forward pass is of `micro_batch` frames, the last one filled up with copies: in the last bits, numbers depend
    on the shape of the batch, but in batches of one shape not on a frame's place and neighbours.

    Raises:
        RewardError: with the traceback of the judge's code, if it raises anything but a lack of memory.
    """
    scores, slopes = torch.empty(len(frames)), torch.empty_like(frames) if gradient else None
    for start in range(0, len(frames), micro_batch):
        rows, names = frames[start : start + micro_batch], list(prompts[start : start + micro_batch])
        absent = micro_batch - len(rows)
        pixels = torch.cat([rows, rows[-1:].expand(absent, -1, -1, -1)]).to(device).requires_grad_(gradient)
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
            raise RewardError(f"judge {reward.name!r} returned scores that carry no gradient to the frames")
        return scores.detach(), slope
    except RewardError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        own = error.__traceback__
        while own and own.tb_frame.f_code.co_filename == __file__:  # the judge's own code says more than ours
            own = own.tb_next
        trace = "".join(traceback.format_exception(type(error), error, own))
        raise RewardError(f"judge {reward.name!r} failed: {error!r}\n{trace.rstrip()}") from error


def scores_of(reward: Reward, frames: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the judge's score() says of frames [N, 3, H, W]: a tensor [N].

    Raises:
        RewardError: it returned anything else; the message names judge, class and what it returned.
    """
    scores: Any = reward.score(frames, prompts)
    wanted = f"allowed: a tensor [{len(frames)}], one score a frame"
    who = f"judge {reward.name!r} (score() of {type(reward).__name__}) returned"
    if not isinstance(scores, Tensor):
        raise RewardError(f"{who} {_described(scores)} for {len(frames)} frames; {wanted}")
    if scores.shape != (len(frames),):
        raise RewardError(f"{who} scores of shape {list(scores.shape)} for {len(frames)} frames; {wanted}")
    if scores.is_complex():
        raise RewardError(f"{who} complex numbers; {wanted}")
    return scores


def _described(value: object) -> str:
    """What something that should have been a tensor is."""
    if isinstance(value, np.ndarray):
        return f"a numpy array {list(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, float | int) else type(value).__name__


def check_rows(name: str, scores: Tensor, slopes: Tensor | None, prompts: Sequence[str]) -> None:
    """Refuse NaN and Inf in scores [N] and gradients [N, 3, H, W].

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
