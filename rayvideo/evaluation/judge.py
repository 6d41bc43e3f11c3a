"""A clip's score: the judge's raw score of the first frame of each segment, averaged, without attenuation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rayvideo.evaluation.generate import to_frames
from rayvideo.recipe import Recipe
from rayvideo.rewards.temporal import sample_segments
from rayvideo.serving.pool import RewardPool


def judged_frames(pixels: npt.NDArray[np.uint8], segments: int) -> Tensor:
    """The frames that are judged, [N, S, 3, H, W] in [0, 1], of clips [N, F, H, W, 3]: 0, 4, 8, 12 of 16."""
    indices = sample_segments(1, pixels.shape[1], segments, random=False)[0]
    return to_frames(pixels[:, indices])


def sights(recipe: Recipe, pool: RewardPool, frames: Tensor) -> dict[str, str]:
    """Judge -> in words, what it gets to see of a clip, by frames [..., 3, H, W] such as it is sent."""
    sent = f"{recipe.reward.segments} of {recipe.data.frames} frames at {recipe.data.fps:g} fps"
    return {judge: f"{sent}, {sight}" for judge, sight in pool.sights(frames).items()}


def judge_clips(
    pool: RewardPool, pixels: npt.NDArray[np.uint8], captions: Sequence[str], segments: int
) -> dict[str, Tensor]:
    """Judge -> raw score [N] of clips [N, F, H, W, 3]; judges without a gradient serve as well."""
    frames = judged_frames(pixels, segments)
    repeated = [caption for caption in captions for _ in range(segments)]
    pending = pool.submit(frames.flatten(0, 1), repeated, gradient=False)
    pool.result(pending)
    return {name: scores.view(-1, segments).mean(1) for name, scores in pending.raw.items()}
