"""Small real judges of clips and of frames, named in recipes as `tests.clip_judges:NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.rewards import ClipJudge, Reward


class Steady(ClipJudge):
    """How little changes in a second: its gradient differs from frame to frame."""

    reads_captions = False
    prefers_clean = False

    @classmethod
    def load(
        cls, checkpoint: str | None, *, fps: Any = None, frames: Any = None, size: Any = None, **options: Any
    ) -> Self:
        judge = cls()
        judge.fps, judge.frames, judge.size = fps, frames, size and tuple(size)
        return judge

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        speeds = clips.diff(dim=1).square().mean((2, 3, 4)) / times.diff()
        return -speeds.mean(1)


class Lively(Steady):
    """Share of values that change by more than a tenth from one frame to the next, which has no slope."""

    differentiable = False

    @torch.no_grad()
    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        return (clips.diff(dim=1).abs() > 0.1).float().mean((1, 2, 3, 4))


class Long(Steady):
    """Says in its class what it asks for: four seconds."""

    fps, frames = 8.0, 32

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()


class Faulty(Steady):
    """Makes the mistake that a caption asks for."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        scores = super().score(clips, prompts, times)
        if "raise" in prompts:
            raise KeyError("a mistake")
        if "detached" in prompts:
            return scores.detach()
        if "shape" in prompts:
            return clips.flatten(2).mean(2)
        if "infinite slope" in prompts:  # d√x/dx at 0
            return (clips - clips.detach()).square().flatten(1).sum(1).sqrt()
        return torch.where(torch.tensor([prompt == "nan" for prompt in prompts]), torch.nan, scores)


class Bright(Reward):
    """Mean of squared pixels of a frame."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return frames.square().flatten(1).mean(1)


def redness(frames: Tensor, prompts: Sequence[str], *, gain: float = 1.0) -> Tensor:
    """Mean of the red channel of a frame."""
    return gain * frames[:, 0].flatten(1).mean(1)


def dark(frames: Tensor, prompts: Sequence[str], checkpoint: str, limit: float) -> Tensor:
    """Share of values below a limit, which has no slope; names a checkpoint."""
    assert checkpoint == "here.pt"
    return (frames < limit).float().flatten(1).mean(1)


dark.differentiable = False  # type: ignore[attr-defined]
