"""Small real rewards for tests of serving, named in recipes as `tests.cluster.judges:Class`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.rewards import Reward, RewardError


class Brightness(Reward):
    """Mean of squared pixels: its gradient differs from frame to frame."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return frames.square().flatten(1).mean(1)


class Redness(Brightness):
    """Mean of the red channel."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return frames[:, 0].flatten(1).mean(1)


class Broken(Brightness):
    """NaN for captions that ask for it; one number too many for others."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(frames, prompts)
        if "shape" in prompts:
            return torch.cat([scores, scores[:1]])
        if "infinite slope" in prompts:  # d√x/dx at 0
            return (frames - frames.detach()).square().flatten(1).sum(1).sqrt()
        return torch.where(torch.tensor([p == "nan" for p in prompts]), torch.nan, scores)


class Slow(Brightness):
    """Takes its time."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        time.sleep(30)
        return super().score(frames, prompts)


class Mortal(Brightness):
    """Kills its own process in the first call after `checkpoint`, a file, has appeared, and removes the file."""

    def __init__(self, fuse: str) -> None:
        super().__init__()
        self._fuse = Path(fuse)

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        if checkpoint is None:
            raise RewardError("Mortal needs a checkpoint")
        return cls(checkpoint)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        if self._fuse.exists():
            self._fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(frames, prompts)
