"""Numbers that must not go on: NaN and Inf stop a run where they appear, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rayvideo.errors import UserError

if TYPE_CHECKING:
    from rayvideo.data.table import Batch


class NonFiniteError(UserError, ArithmeticError):
    """NaN or Inf; the message names step, tensor and clips."""


def check_finite(what: str, values: Tensor, step: int, clips: Batch) -> None:
    """Raise `NonFiniteError` if `values` [B, …], or a scalar that stands for all clips, hold NaN or Inf."""
    finite = values.detach().isfinite()
    if finite.all():
        return
    rows = finite.flatten(1).all(1) if finite.ndim > 1 else finite.expand(len(clips.ids))
    bad = (~rows).nonzero().flatten().tolist()
    named = ", ".join(f"{clips.ids[i]} ({clips.videos[i]}, {clips.captions[i]!r})" for i in bad)
    raise NonFiniteError(f"step {step}: NaN or Inf in {what} of clip {named}")
