"""The least that takes an adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8)
        self.to_k = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_k(torch.tanh(self.to_q(x)))
