"""Decoding of chosen frames with little memory: one frame's graph alive at a time, and only in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Decode = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, F, h, w], indices [B, S]) -> pixels [B, S, 3, H, W], differentiable."""


def frame_by_frame(decode: Decode, latents: Tensor, indices: Tensor) -> Tensor:
    """What `decode` gives, with the same gradient up to rounding; nothing of the decoder is kept until it is needed.

    In the backward pass each frame [B, 1] is decoded once more, and its gradient goes back to the latents at once: a
    second forward pass of the decoder, for the memory of one frame's window in place of all of them.
    """
    return _FrameByFrame.apply(latents, indices, decode)


class _FrameByFrame(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, indices: Tensor, decode: Decode) -> Tensor:
        ctx.save_for_backward(latents, indices)
        ctx.decode = decode
        return torch.cat([decode(latents, one) for one in indices.split(1, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        latents, indices = ctx.saved_tensors
        total = torch.zeros_like(latents)
        for one, slope in zip(indices.split(1, dim=1), upstream.split(1, dim=1), strict=True):
            leaf = latents.detach().requires_grad_()
            with torch.enable_grad():
                pixels = ctx.decode(leaf, one)
            total += torch.autograd.grad(pixels, leaf, slope)[0]
        return total, None, None
