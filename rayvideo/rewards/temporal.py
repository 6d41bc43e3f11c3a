"""How a video is judged from a few of its frames: segmental sampling and attenuation (paper §4.2, Eq. 6-8)."""

from __future__ import annotations

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
