"""One frozen judge in an actor of its own: frames in, scores and d(score)/d(frames) out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import ray
import torch

from rayvideo.recipe import Judge
from rayvideo.rewards.base import Reward, RewardError, load_reward

Array = npt.NDArray[np.float32]


# Stateless, so a call that dies with its process is simply made again: the answer is the same.
@ray.remote(max_restarts=-1, max_task_retries=2)
class RewardActor:
    """Holds one reward model; frozen and without state between calls."""

    def __init__(self, judge: Judge) -> None:
        self._device = torch.device("cuda" if judge.num_gpus else "cpu")
        self._reward = load_reward(judge, self._device)

    def ready(self) -> None:
        """Return once the judge is loaded."""

    def judge(self, frames: Array, prompts: Sequence[str], gradient: bool) -> tuple[Array, Array | None]:
        """`judge_frames` of this actor's judge."""
        return judge_frames(self._reward, frames, prompts, gradient, self._device)


def judge_frames(
    reward: Reward, frames: Array, prompts: Sequence[str], gradient: bool, device: torch.device
) -> tuple[Array, Array | None]:
    """Score frames [N, 3, H, W] in [0, 1] and, if asked, differentiate each score by its own frame.

    Returns:
        Scores [N] and gradients [N, 3, H, W] or None, both fp32.

    Raises:
        RewardError: scores of another shape than [N]; NaN or Inf in scores or gradients.
    """
    # Arrays from the object store are read-only: torch.tensor copies.
    pixels = torch.tensor(frames, device=device, requires_grad=gradient)
    with torch.set_grad_enabled(gradient):
        scores = reward.score(pixels, list(prompts))
    if scores.shape != (len(frames),):
        raise RewardError(
            f"judge {reward.name!r} returned scores of shape {list(scores.shape)} for {len(frames)} frames; "
            f"allowed: one score a frame, [{len(frames)}]"
        )
    _check(reward, "score", scores, prompts)
    if not gradient:
        return scores.float().cpu().numpy(), None
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    _check(reward, "gradient", slope, prompts)
    return scores.detach().float().cpu().numpy(), slope.cpu().numpy()


def _check(reward: Reward, what: str, values: torch.Tensor, prompts: Sequence[str]) -> None:
    finite = values.detach().isfinite().flatten(1).all(1) if values.ndim > 1 else values.detach().isfinite()
    if not finite.all():
        captions = sorted({prompts[i] for i in (~finite).nonzero().flatten().tolist()})
        raise RewardError(f"judge {reward.name!r} gave NaN or Inf as {what} for captions {captions}")
