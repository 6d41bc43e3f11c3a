"""Whole clips decoded tile by tile, for sizes whose decoding does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rayvideo.models.base import ModelError

TILE = 256
"""Side of a tile in pixels, and"""
OVERLAP = 64
"""by how many pixels neighbours overlap at least: what diffusers takes for Wan."""


@torch.no_grad()
def decode_tiles(
    decode: Callable[[Tensor], Tensor], latents: Tensor, factor: int, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """Pixels [B, F, 3, H, W] on the CPU from latents [B, C, f, h, w], of tiles that fade into each other.

    Not what `decode` makes of the whole: its norms and attentions see a tile alone. So there is no gradient, which
    would be another one. A clip no larger than a tile is decoded whole.

    Args:
        decode: Latents of any height and width to all frames, `factor` pixels a latent.
        tile: Side of a tile in pixels, as `overlap` a multiple of `factor`.

    Raises:
        ModelError: tiles come out in other sizes.
    """
    side = tile // factor
    tops, lefts = (_starts(size, side, overlap // factor) for size in latents.shape[-2:])

    def decoded(top: int, left: int) -> Tensor:
        part = latents[..., top : top + side, left : left + side]
        height, width = (factor * size for size in part.shape[-2:])
        pixels = decode(part).cpu()
        if pixels.shape[-2:] != (height, width):
            made = "x".join(map(str, pixels.shape[-2:]))
            raise ModelError(
                f"model.tiled_decoding true: of a tile of {height}x{width} pixels this model makes {made}, since it "
                "decodes whole clips only; allowed here is false"
            )
        return pixels

    rows = [_joined([decoded(top, left) for left in lefts], lefts, factor, overlap, -1) for top in tops]
    return _joined(rows, tops, factor, overlap, -2)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of one size begin, at even distances, so that they cover `size`."""
    if size <= tile:
        return [0]
    gaps = -(-(size - tile) // (tile - overlap))
    return [round(number * (size - tile) / gaps) for number in range(gaps + 1)]


def _joined(pieces: Sequence[Tensor], starts: Sequence[int], factor: int, overlap: int, dim: int) -> Tensor:
    """Pieces that begin at `starts`, in latents, along `dim` as one; each counts less towards its ends, which saw less
    of what is around them.
    """
    if len(pieces) == 1:
        return pieces[0]
    shape = list(pieces[0].shape)
    length = shape[dim]
    rise = torch.arange(1.0, length + 1)
    weight = torch.minimum(rise, rise.flip(0)).clamp(max=overlap)
    if dim == -2:
        weight = weight[:, None]
    shape[dim] = factor * starts[-1] + length
    total, weights = torch.zeros(shape), torch.zeros(shape)
    for start, piece in zip(starts, pieces, strict=True):
        total.narrow(dim, factor * start, length).add_(piece * weight)
        weights.narrow(dim, factor * start, length).add_(weight)
    return total / weights
