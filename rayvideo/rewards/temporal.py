"""Which frames of a clip judges are shown, and how their scores become one: segments, attenuation (§4.2, Eq. 6-8)."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from rayvideo.editing import Generators


def sample_segments(
    batch: int, num_frames: int, segments: int, *, generator: Generators = None, random: bool = True
) -> Tensor:
    """Frame indices [batch, segments], ascending: one per equal segment of the clip (SegVR, Eq. 6).

    `random` draws uniformly within each segment, independently per clip (training); otherwise the first frame of each
    segment is taken (evaluation: 0, 4, 8, 12 of 16). Indices are on the CPU.

    Raises:
        ValueError: if `segments` does not divide `num_frames`.
    """
    if segments < 1 or num_frames % segments:
        raise ValueError(f"{segments} segments do not divide {num_frames} frames")
    length = num_frames // segments
    starts = (torch.arange(segments) * length).expand(batch, segments)
    if not random:
        return starts.clone()
    if isinstance(generator, torch.Generator) or generator is None:
        return starts + torch.randint(length, (batch, segments), generator=generator)
    if len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for a batch of {batch}; give one per clip")
    return torch.cat([sample_segments(1, num_frames, segments, generator=one) for one in generator])


def attenuation(indices: Tensor, num_frames: int, rate: float = 1.0) -> Tensor:
    """Weight e^(−rate·|g − F//2|) of each judged frame g: 1 at the middle frame, fading to both ends (TAR, Eq. 7).

    `rate` is per frame, whatever the clip's length: at 1.0 a drawn frame of a 16-frame clip weighs 0.135 on average,
    one of an 81-frame clip 0.027. To keep the shape of the decay on a longer clip, lower the rate in proportion.
    """
    return torch.exp(-rate * (indices - num_frames // 2).abs().float())


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
