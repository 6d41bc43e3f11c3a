"""What crosses the network between trainers, router and judges. Imports no torch, so that the router starts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rayvideo.sections import Precision

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[Any]
"""Frames [N, 3, H, W] or clips [N, F', 3, H, W], or gradients by them: float32, float16, or bfloat16 as uint16, a type
that numpy lacks.
"""

Times = tuple[float, ...]
"""Of clips: seconds from the clip's beginning of each frame, F' of them."""


class View(NamedTuple):
    """What a loaded judge looks at."""

    sees: str = "frames"
    """"frames" or "clip"."""
    fps: float | None = None
    """Of a clip, frames per second; None: the clip's."""
    frames: int | None = None
    """Of a clip, how many frames; None: as many as there are."""
    size: tuple[int, int] | None = None
    """Height and width that frames are resized to; None: as they come, unless the judge's own code resizes them."""
    resize: str = "bilinear"
    framing: str = "crop"
    """How they are resized: arguments of `resize_frames`."""

    @property
    def selection(self) -> tuple[str, float | None, int | None]:
        """Equal for judges that are shown the same frames."""
        return self.sees, self.fps, self.frames


class Outcome(NamedTuple):
    """What became of a replica's call, without the numbers themselves."""

    errors: list[str | None] = []  # noqa: RUF012 - never changed
    """Of each request, None where its numbers are good."""
    failure: str | None = None
    """What went wrong with the call as a whole, whichever request was at fault."""
    out_of_memory: bool = False
    """Whether that was a lack of memory, so that a smaller micro-batch may help."""


class Reply(NamedTuple):
    """What the router answers to a request."""

    error: str | None = None
    """Names the judge, what went wrong and the size of the request; None if there is a result."""
    result: list[Any] = []  # noqa: RUF012 - never changed
    """Ref of (scores [N], gradients [N, ...] or None) in a list, which keeps Ray from fetching it on the way."""
    micro_batch: int = 0
    """Frames, or clips, per forward pass that it was computed with."""


def encode(values: Tensor, precision: Precision) -> Pixels:
    """Pack a tensor for the way."""
    import torch

    values = values.detach().to(
        "cpu", {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    )
    return (values.view(torch.uint16) if precision == "bf16" else values).numpy()


def decode(packed: Pixels) -> Tensor:
    """Unpack, as fp32 in memory of its own: arrays from Ray's store are read-only."""
    import torch

    values = torch.tensor(packed)
    return (values.view(torch.bfloat16) if packed.dtype == np.uint16 else values).float()


def returns_as(wire: Precision) -> Precision:
    """The precision of gradients on the way back: fp16 would flush small ones to zero."""
    return "bf16" if wire == "fp16" else wire
