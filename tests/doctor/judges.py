"""The menagerie's judge with one thing broken in each, named in recipes as `tests.doctor.judges:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.rewards import ClipJudge, Reward
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


class Film(ClipJudge):
    """The menagerie's judge of frames as a judge of clips: the mean over four frames."""

    frames = 4
    size = (64, 64)

    def __init__(self, judge: HPSv2) -> None:
        super().__init__()
        self.judge = judge
        self.register_buffer("mean", judge.mean, persistent=False)
        self.register_buffer("std", judge.std, persistent=False)

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls(HPSv2.load(checkpoint, **options))

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        count = clips.shape[1]
        frames, repeated = clips.flatten(0, 1), [prompt for prompt in prompts for _ in range(count)]
        return self.judge.score(frames, repeated).view(-1, count).mean(1)


class FilmOfNextCaption(Film):
    """Clip i meets the caption of clip i + 1."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        return super().score(clips, [*prompts[1:], prompts[0]], times)


class FilmDetached(Film):
    """Scores without a graph."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        return super().score(clips, prompts, times).detach()


class FilmHalfDetached(Film):
    """The first two frames add to the score, not to the gradient."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        return super().score(torch.cat([clips[:, :2].detach(), clips[:, 2:]], dim=1), prompts, times)


class FilmRelative(Film):
    """Scores clips by their distance from the batch's mean."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        scores = super().score(clips, prompts, times)
        return scores - scores.mean()


class FilmNormalisedTwice(Film):
    """Normalises what its network normalises again."""

    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        return super().score((clips - self.judge.mean) / self.judge.std, prompts, times)
