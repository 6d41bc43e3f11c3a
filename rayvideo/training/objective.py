"""What is minimised."""

from __future__ import annotations

from torch import Tensor


def reward_loss(rewards: Tensor) -> Tensor:
    """Mean of 1 - R over videos [B] (paper Eq. 9 up to the constant: the gradient is that of -R)."""
    return (1 - rewards).mean()
