"""The menagerie's judge with one thing broken in each, named in recipes as `tests.doctor.judges:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.rewards import Reward
from rayvideo.rewards.hpsv2 import HPSv2


class NextCaption(HPSv2):
    """Frame i meets the caption of frame i + 1."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, [*prompts[1:], prompts[0]])


class OneCaption(HPSv2):
    """Every frame meets the same words."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, ["a picture"] * len(prompts))


class Swapped(HPSv2):
    """Takes its arguments the other way round."""

    def score(self, frames: Any, prompts: Any) -> Tensor:
        return super().score(prompts, frames)


class WorseIsHigher(HPSv2):
    """A distance in a score's place."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1 - super().score(frames, prompts)


class Detached(HPSv2):
    """Scores without a graph."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, prompts).detach()


class Rounded(HPSv2):
    """Has a graph, but pixels of 8 bits have no slope."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score((255 * frames).round() / 255, prompts)


class HalfDetached(HPSv2):
    """The second of two views adds to the score, not to the gradient."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, prompts) + super().score(frames.detach().flip(-1), prompts)


class Relative(HPSv2):
    """Scores depend on who else is in the batch."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(frames, prompts)
        return scores - scores.mean()


class NormalisedTwice(HPSv2):
    """Takes what comes in [0, 1] for raw, and what is normalised too."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score((frames - self.mean) / self.std, prompts)


class FromMinusOne(HPSv2):
    """Feeds [-1, 1] to a network that normalises [0, 1]."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(2 * frames - 1, prompts)


class Bytes(HPSv2):
    """Feeds [0, 255]."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(255 * frames, prompts)


class Restless(HPSv2):
    """Rolls dice."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, prompts) + 0.1 * torch.randn(len(frames))


class Headless(HPSv2):
    """Its head is in no file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.head = nn.Linear(1, 1)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.head(super().score(frames, prompts)[:, None])[:, 0]


class Plain(Reward):
    """A network of one's own, that gets `gain`·pixels + `offset` and declares nothing."""

    reads_captions = False
    prefers_clean = False

    def __init__(self, gain: float, offset: float) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset
        self.layer = nn.Conv2d(3, 1, 3)

    @classmethod
    def load(cls, checkpoint: str | None, gain: float = 1, offset: float = 0, **options: Any) -> Self:
        torch.manual_seed(0)
        return cls(gain, offset)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.layer(self.gain * frames + self.offset).square().flatten(1).mean(1)
