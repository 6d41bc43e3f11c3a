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


class Fragile(Brightness):
    """Does what `checkpoint`, a file, says, in the first call that comes when it has been called `after` times:
    "die" kills its own process, "nan" spoils the scores. The file is removed, so that it happens once.
    """

    def __init__(self, fuse: str, after: int) -> None:
        super().__init__()
        self._fuse = Path(fuse)
        self._left = after

    @classmethod
    def load(cls, checkpoint: str | None, after: int = 0, **options: Any) -> Self:
        if checkpoint is None:
            raise RewardError("Fragile needs a checkpoint")
        return cls(checkpoint, after)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(frames, prompts)
        self._left -= 1
        if self._left >= 0 or not self._fuse.exists():
            return scores
        deed = self._fuse.read_text()
        self._fuse.unlink()
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return scores * torch.nan
