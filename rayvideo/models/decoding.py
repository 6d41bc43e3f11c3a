"""Decoding of chosen frames with little memory: few frames' graph alive at a time, and only in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Where = tuple[list[int], list[int]]
"""Some of the chosen frames [B, S], by clips and columns."""
DecodeApart = Callable[[Tensor, Tensor], Iterator[tuple[Where, Tensor]]]
"""(latents [B, C, F, h, w], indices [B, S]) -> pixels [n, 3, H, W] of a few frames after the other, as
`VideoModel.decode_apart` gives them."""


def frame_by_frame(decode: DecodeApart, latents: Tensor, indices: Tensor) -> Tensor:
    """Pixels [B, S, 3, H, W] of all frames that `decode` gives; nothing of the decoder is kept until it is needed.

    In the backward pass the frames are decoded once more, and the gradient of each few goes back to the latents at
    once: a second forward pass of the decoder, for the memory of one frame's window in place of all of them.
    """
    return _FrameByFrame.apply(latents, indices, decode)


class _FrameByFrame(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, indices: Tensor, decode: DecodeApart) -> Tensor:
        ctx.save_for_backward(latents, indices)
        ctx.decode = decode
        decoded = list(decode(latents, indices))
        pixels = decoded[0][1].new_empty(*indices.shape, *decoded[0][1].shape[1:])
        for where, few in decoded:
            pixels[where] = few
        return pixels

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        latents, indices = ctx.saved_tensors
        total, leaf = torch.zeros_like(latents), latents.detach().requires_grad_()
        with torch.enable_grad():
            for where, few in ctx.decode(leaf, indices):
                total += torch.autograd.grad(few, leaf, upstream[where])[0]
        return total, None, None
