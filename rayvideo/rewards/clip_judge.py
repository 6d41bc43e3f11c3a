"""A judge of whole clips: what it offers, and what it asks for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.rewards.base import Reward, RewardError, Sees, declared_by
from rayvideo.rewards.pixels import Framing, Resize, resize_frames


class ClipJudge(Reward):
    """A frozen judge of clips. What it asks for stands in the class, or `load` sets it, if options decide it."""

    sees: ClassVar[Sees] = "clip"

    fps: float | None = None
    """Frames per second that it is shown: the clip's frames that are nearest to these times; None: as the clip has."""

    frames: int | None = None
    """How many frames F' it is shown, from the middle of the clip, or spread over it if `fps` is None; None: all."""

    size: tuple[int, int] | None = None
    """Height and width that clips have when they come to `score`; None: the recipe's."""

    resize: Resize = "bilinear"
    """How they come to that size; `load_reward` sets it to the recipe's."""

    framing: ClassVar[Framing] = "crop"
    """What "bicubic" does with clips of another shape than `size`."""

    @abstractmethod
    def score(self, clips: Tensor, prompts: Sequence[str], times: Tensor) -> Tensor:
        """Scores [N] in fp32 of clips [N, F', 3, H, W] in [0, 1] against their N prompts; a higher score is better.

        A clip's score must not depend on the others: clips of several callers may come together.

        Args:
            times: Seconds from the clip's beginning of each frame, [F'], the same for all N clips.
        """


class AtTimes(Reward):
    """A clip judge that has been told when the frames of its clips are, so that it is asked as judges of frames are."""

    sees: ClassVar[Sees] = "clip"

    def __init__(self, judge: ClipJudge, times: Sequence[float]) -> None:
        super().__init__()
        self.name = judge.name
        self.judge = judge
        self._times = torch.tensor(times)

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        """Refused: `at_times` makes it of a judge that is loaded."""
        raise RewardError("a judge that was told its clips' times is made by at_times(); a recipe can't name it")

    def score(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] of clips [N, F', 3, H, W] in [0, 1], which are resized to the judge's size."""
        if self.judge.size is not None:
            clips = resize_frames(clips, self.judge.size, self.judge.resize, self.judge.framing)
        return self.judge.score(clips, prompts, self._times.to(clips.device))


def at_times(judge: ClipJudge, times: Sequence[float]) -> AtTimes:
    """The judge for clips whose frames are at these times, in seconds; named and declared as it is itself."""
    kind: Any = type(type(judge).__name__, (AtTimes,), declared_by(judge))
    return kind(judge, times)
