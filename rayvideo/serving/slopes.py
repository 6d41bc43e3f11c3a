"""Scores whose gradients came from elsewhere, as part of autograd's graph; and how such gradients lie to each other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor


def scored(items: Tensor, scores: Tensor, slope: Tensor | None) -> Tensor:
    """Scores [N] as a function of items [N, ...] whose derivative d(score)/d(item) is `slope`; None: a constant."""
    return scores if slope is None else _Scored.apply(items, scores, slope)


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items: Tensor, scores: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return scores

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream.view(-1, *[1] * (slope.ndim - 1)) * slope, None, None


def cosines(slopes: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    """Cosine of the gradients of each two judges, all of one shape: negative where they pull in opposite directions."""
    return {
        (one, other): torch.cosine_similarity(slopes[one].flatten(), slopes[other].flatten(), 0).item()
        for one, other in combinations(slopes, 2)
    }
