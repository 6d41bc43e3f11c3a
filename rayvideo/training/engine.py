"""What a trainer asks of whoever optimises the adapter."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Update(NamedTuple):
    """What an optimizer step did."""

    gradient_norm: float
    """L2 norm of the adapter's gradient over all workers' clips, before clipping; 0 if the step was not applied."""
    applied: bool
    """False if the gradient held NaN or Inf. For fp16 that is an overflow: the loss scale is lower from then on."""


class Engine(Protocol):
    """Adds up gradients of the adapter and updates it. All workers take part in every call."""

    @property
    def denoiser(self) -> nn.Module:
        """What a `VideoModel` calls in the denoiser's place."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one pass over a micro-batch; the workers' gradients are averaged."""

    def step(self, lr: float) -> Update:
        """Update the adapter after all passes over an optimizer step's micro-batches, and forget their gradient."""
