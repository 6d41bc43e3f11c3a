"""What a judge offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.errors import UserError

Sees = Literal["frames", "clip"]
"""What a judge is shown: single frames, or whole clips (`rewards.clip_judge`)."""

DECLARED = ("differentiable", "reads_captions", "prefers_clean")
"""What a judge says of itself, by attributes of its class or function."""


class RewardError(UserError, RuntimeError):
    """A judge can't be loaded or was called wrongly. A failed judge never becomes a score."""


class Reward(nn.Module, ABC):
    """A frozen judge of frames. A class of your own is named `module:Class` in the recipe's `type`.

    Judges of whole clips are `ClipJudge`s.
    """

    sees: ClassVar[Sees] = "frames"

    differentiable: ClassVar[bool] = True
    """Whether `score` carries a gradient to the frames; training refuses judges that say False."""

    reads_captions: ClassVar[bool] = True
    """Whether a frame scores higher with its own caption than with another's; `rayvideo doctor` holds it to that."""

    prefers_clean: ClassVar[bool] = True
    """Whether a frame scores higher than its blurred, noisy or banded version; `rayvideo doctor` holds it to that."""

    name: str = "reward"
    """Name in logs and errors; `load_reward` sets it to the recipe's."""

    size: tuple[int, int] | None = None
    """Height and width that frames are resized to before they are judged; None: they are judged as they come."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str | None, *args: Any, **options: Any) -> Self:
        """Build the judge on the CPU.

        It gets `resize` ("bilinear" or "bicubic"), `dtype` (torch.dtype), `architecture` if the recipe sets it, and
        everything under the recipe's `options`. An option that the signature doesn't name is refused before anything
        starts; **options takes whatever comes, misspelt ones too.
        """

    @classmethod
    def shapes(cls, checkpoint: str | None, *args: Any, **options: Any) -> Self | None:
        """What `load` would build, but on the meta device and without weights, for `rayvideo plan`; None: unknown."""
        return None

    @classmethod
    def check(cls, checkpoint: str | None, *args: Any, **options: Any) -> None:
        """Refuse, without loading anything, what `load` would: a missing file, say. Jobs ask before Ray starts.

        Raises:
            RewardError: beginning with the option's name, such as "checkpoint 'x.pt' is not a file".
        """

    @abstractmethod
    def score(self, frames: Tensor, prompts: Sequence[str], *args: Any, **more: Any) -> Tensor:
        """Scores [N] in fp32 of frames [N, 3, H, W] in [0, 1] against their N prompts; a higher score is better.

        A frame's score must not depend on the others: frames of several callers may come together. There are no further
        arguments: to type checkers, their places say that a `ClipJudge` takes one more.
        """


def declared_by(source: object) -> dict[str, bool]:
    """What a judge's class, or a function, says of itself; what it leaves out is missing."""
    return {name: getattr(source, name) for name in DECLARED if hasattr(source, name)}
