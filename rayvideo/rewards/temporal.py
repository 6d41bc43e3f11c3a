"""Which frames of a clip judges are shown, and how their scores become one: segments, attenuation (§4.2, Eq. 6-8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from rayvideo.editing import Generators

PAPER_FRAMES = 16
"""Length of the clips that the paper chose its rate of attenuation for."""


def sample_segments(
    batch: int, num_frames: int, segments: int, *, generator: Generators = None, random: bool = True
) -> Tensor:
    """Frame indices [batch, segments], ascending: one of each segment of the clip (SegVR, Eq. 6).

    Segment i of S holds the frames from i·F//S up to, but without, (i+1)·F//S. So segments are equally long where S
    divides F, and else differ by one frame at most: 81 frames in 4 segments are 20, 20, 20 and 21.

    `random` draws uniformly within each segment, independently per clip (training); otherwise the first frame of each
    segment is taken (evaluation: 0, 4, 8, 12 of 16). Indices are on the CPU.

    Raises:
        ValueError: if there are more segments than frames, or none.
    """
    if not 1 <= segments <= num_frames:
        raise ValueError(f"{segments} segments of {num_frames} frames; allowed: 1 to {num_frames}")
    bounds = torch.arange(segments + 1) * num_frames // segments
    starts, lengths = bounds[:-1].expand(batch, segments), bounds.diff().tolist()
    if not random:
        return starts.clone()
    if isinstance(generator, torch.Generator) or generator is None:
        return starts + _offsets(batch, lengths, generator)
    if len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for a batch of {batch}; give one per clip")
    return torch.cat([sample_segments(1, num_frames, segments, generator=one) for one in generator])


def _offsets(batch: int, lengths: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """For each clip and segment a number from 0 up to, but without, the segment's length: [batch, segments]."""
    if len(set(lengths)) == 1:  # one call for all segments: runs of the past drew so, and must draw the same again
        return torch.randint(lengths[0], (batch, len(lengths)), generator=generator)
    return torch.cat([torch.randint(length, (batch, 1), generator=generator) for length in lengths], dim=1)


def attenuation(indices: Tensor, num_frames: int, rate: float = 1.0) -> Tensor:
    """Weight e^(−rate·|g − F//2|) of each judged frame g: 1 at the middle frame, fading to both ends (TAR, Eq. 7).

    `rate` is per frame, whatever the clip's length: at 1.0 a drawn frame of a 16-frame clip weighs 0.135 on average,
    one of an 81-frame clip 0.027. `rate_per_frame` makes it of a rate that is meant for a whole clip.
    """
    return torch.exp(-rate * (indices - num_frames // 2).abs().float())


def rate_per_frame(rate: float, unit: Literal["frame", "clip"], num_frames: int) -> float:
    """The rate that `attenuation` takes for a recipe's `reward.attenuation` and `reward.attenuation_unit`.

    In the unit "frame" it is the rate itself, as in the paper. In the unit "clip" the rate is one for the paper's 16
    frames: it is scaled by 16/F, so that the decay has the same shape along a clip of any length, and drawn frames
    weigh about as much on average (0.135 of 16 frames, 0.125 of 81 at a rate of 1.0).
    """
    return rate if unit == "frame" else rate * PAPER_FRAMES / num_frames


def video_reward(frame_scores: Tensor, weights: Tensor) -> Tensor:
    """Reward of each video [B]: mean over its judged frames of weight·score, both [B, S], not normalised (Eq. 8)."""
    return (frame_scores * weights).mean(dim=1)


def clip_frames(num_frames: int, clip_fps: float, fps: float | None, frames: int | None) -> tuple[Tensor, Tensor]:
    """Which frames a judge of clips is shown: their indices [F'], ascending, and their times in seconds [F'].

    With `fps`, the frames that are nearest to 0, 1/fps, 2/fps, … seconds, as far as the clip goes; with `frames` too,
    so many of them, in a window around the clip's middle. With `frames` alone, the middle frames of as many equal parts
    of the clip. Without either, all. Above the clip's own `clip_fps`, frames come more than once.

    Raises:
        ValueError: the clip is too short.
    """
    if not ((frames is None or frames > 0) and (fps is None or fps > 0)):
        raise ValueError(f"asks for {frames} frames at {fps} fps, which can't be")
    count = frames or num_frames
    if fps is None:
        first, apart = Fraction(num_frames, 2 * count) - Fraction(1, 2), Fraction(num_frames, count)
    else:
        apart = Fraction(clip_fps) / Fraction(fps)
        count = frames or math.ceil((num_frames - Fraction(1, 2)) / apart)
        first = (num_frames - 1 - (count - 1) * apart) / 2 if frames else Fraction(0)
    # Halves go up; so a window that reaches half a frame before the clip's beginning ends one frame behind its end.
    if first <= -Fraction(1, 2) or (fps is None and count > num_frames):
        rate = "" if fps is None else f" at {fps:g} fps"
        raise ValueError(
            f"asks for {frames} frames{rate}; a clip of {num_frames} frames at {clip_fps:g} fps is too short"
        )
    indices = torch.tensor([math.floor(first + k * apart + Fraction(1, 2)) for k in range(count)])
    return indices, indices / clip_fps
