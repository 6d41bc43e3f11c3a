"""Small real rewards for tests of serving, named in recipes as `tests.cluster.judges:Class`."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections import Counter
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


class Darkness(Brightness):
    """Likes what `Brightness` does not."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return -super().score(frames, prompts)


class Blind(Brightness):
    """Has a gradient, which is 0 everywhere."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(0 * frames, prompts)


class Broken(Brightness):
    """Makes the mistake that a caption asks for."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(frames, prompts)
        if "die" in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raise" in prompts:
            raise KeyError("a mistake")
        if "detached" in prompts:
            return scores.detach()
        if "unrelated" in prompts:
            return torch.ones(len(frames), requires_grad=True) * 2
        if "shape" in prompts:
            return torch.cat([scores, scores[:1]])
        if "infinite slope" in prompts:  # d√x/dx at 0
            return (frames - frames.detach()).square().flatten(1).sum(1).sqrt()
        return torch.where(torch.tensor([p == "nan" for p in prompts]), torch.nan, scores)


class Slow(Brightness):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    @classmethod
    def load(cls, checkpoint: str | None, seconds: float = 30, **options: Any) -> Self:
        return cls(seconds)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        time.sleep(self._seconds)
        return super().score(frames, prompts)


class Logged(Brightness):
    """Notes each forward pass in a file: how many frames of each caption, without those that fill it up. While there is
    a file of the same name with .hold at its end, it waits.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls(str(checkpoint))

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        copies = int((frames[1:] == frames[:-1]).flatten(1).all(1).sum())
        counts = Counter(prompts[: len(prompts) - copies])
        with self._file.open("a") as file:
            passed = ", ".join(f"{count} {caption}" for caption, count in counts.items())
            file.write(f"{'gradient' if frames.requires_grad else 'no gradient'}: {passed}\n")
        while self._file.with_name(f"{self._file.name}.hold").exists():
            time.sleep(0.05)
        return super().score(frames, prompts)


class Hungry(Brightness):
    """Asks for as many GiB per frame as the first caption says; the process may have 1.5 more than at the start."""

    def __init__(self) -> None:
        super().__init__()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 3 * 2**29
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        torch.empty(int(float(prompts[0]) * len(frames) * 2**30), dtype=torch.uint8)
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
