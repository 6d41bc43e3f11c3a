"""A clip's score: a judge's raw scores of the first frame of each segment, averaged, or what a judge of clips says.

There is no attenuation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rayvideo.evaluation.generate import to_frames
from rayvideo.recipe import Recipe
from rayvideo.rewards.temporal import sample_segments
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.serving.pool import RewardPool


def judged_frames(pixels: npt.NDArray[np.uint8], segments: int) -> Tensor:
    """The frames that are judged, [N, S, 3, H, W] in [0, 1], of clips [N, F, H, W, 3]: 0, 4, 8, 12 of 16."""
    indices = sample_segments(1, pixels.shape[1], segments, random=False)[0]
    return to_frames(pixels[:, indices])


def sights(recipe: Recipe, pool: RewardPool, frames: Tensor) -> dict[str, str]:
    """Judge -> in words, what it gets to see of a clip, by frames [..., 3, H, W] such as it is sent."""
    return _reward(recipe, pool).sights(frames)


def judge_clips(
    recipe: Recipe, pool: RewardPool, pixels: npt.NDArray[np.uint8], captions: Sequence[str]
) -> dict[str, Tensor]:
    """Judge -> raw score [N] of clips [N, F, H, W, 3]; judges without a gradient serve as well."""
    reward = _reward(recipe, pool)
    drawn = sample_segments(len(pixels), pixels.shape[1], recipe.reward.segments, random=False)
    shown = reward.shown(drawn)
    frames = to_frames(pixels[np.arange(len(pixels))[:, None], shown.numpy()])
    return reward.result(reward.submit(frames, shown, drawn, captions, gradient=False)).by_clip()


def _reward(recipe: Recipe, pool: RewardPool) -> ClipReward:
    return ClipReward(pool, recipe.reward, recipe.data.frames, recipe.data.fps)
