"""Chosen frames out of Wan's causal VAE, with a gradient through no more of its past than is asked for.

The decoder runs chunk by chunk: one latent frame, with what its layers kept of the ones before, their *caches*. The
first chunk gives one pixel frame, each later one four, so that pixel frame p lies in chunk (p + 3) // 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    unpatchify,
)
from torch import Tensor, nn

from rayvideo.editing import recompute

Cache = list[Any]
"""What each causal layer of the decoder kept: None at first, then a tensor; or a word, where only the first chunk has
passed."""


class WindowedDecoder:
    """The decoder of a Wan VAE, one clip at a time; the VAE itself stays as it is until `checkpoint`."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae: Any = vae
        self._slots = sum(isinstance(layer, WanCausalConv3d) for layer in self._vae.decoder.modules())
        self._checkpointing = False

    @property
    def stride(self) -> int:
        """Pixel frames of every chunk but the first, which has one: 4 for Wan."""
        return stride(self._vae)

    def decode(self, latents: Tensor, frames: Sequence[int] | None = None, context: int | None = None) -> Tensor:
        """Pixels [S, 3, H, W] nominally in [-1, 1], but not clamped, of these frames of a clip; None: of all.

        Every chunk up to the last one wanted is run, so that pixels do not depend on `context`. A wanted chunk and
        `context` chunks before it, with None all of them, carry a gradient. Where the windows of several wanted chunks
        touch they are one, and a frame's gradient reaches all of it. What lies between windows is run without gradient.
        Since the decoder never looks ahead, the gradient within a window is the exact one.

        Args:
            latents: [1, C, f, h, w] in the VAE's units.
            frames: Each from 0 to `stride`·(f − 1).
        """
        frames = range(self.stride * (latents.shape[2] - 1) + 1) if frames is None else frames
        wanted = {self.chunk_of(frame) for frame in frames}
        last = max(wanted)
        live = {chunk for end in wanted for chunk in range(_window(end, context), end + 1)}
        pieces = self._vae.post_quant_conv(latents).split(1, dim=2)
        cache: Cache = [None] * self._slots
        pixels: dict[int, Tensor] = {}
        for chunk in range(last + 1):
            with torch.set_grad_enabled(chunk in live and torch.is_grad_enabled()):
                out, cache = self._chunk(pieces[chunk], cache, chunk == 0)
            if chunk in wanted:
                pixels[chunk] = self._unpatched(out)[0]
        return torch.stack([self._frame(pixels[self.chunk_of(frame)], frame) for frame in frames])

    def apart(
        self, latents: Callable[[], Tensor], frames: Sequence[int], context: int | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The same frames chunk by chunk: their places in `frames`, and their pixels [n, 3, H, W].

        Each chunk's window has a graph of its own, whether or not it touches another's. Chunks before it run without
        gradient, once for all windows.

        Args:
            latents: Gives [1, C, f, h, w] in the VAE's units, for each window anew.
        """
        cache: Cache = [None] * self._slots
        done = 0  # chunks that `cache` has seen
        for chunk in sorted({self.chunk_of(frame) for frame in frames}):
            pieces = self._vae.post_quant_conv(latents()).split(1, dim=2)
            first = _window(chunk, context) if torch.is_grad_enabled() else chunk
            with torch.no_grad():
                for before in range(done, first):
                    _, cache = self._chunk(pieces[before], cache, before == 0)
            done, own = first, cache
            for live in range(first, chunk + 1):
                out, own = self._chunk(pieces[live], own, live == 0)
            if not torch.is_grad_enabled():
                done, cache = chunk + 1, own
            places = [place for place, frame in enumerate(frames) if self.chunk_of(frame) == chunk]
            shown = self._unpatched(out)[0]
            yield places, torch.stack([self._frame(shown, frames[place]) for place in places])

    def chunk_of(self, frame: int) -> int:
        """The chunk, or latent frame, that a pixel frame lies in."""
        return -(-frame // self.stride)

    def checkpoint(self) -> None:
        """From now on keep only what chunks and blocks start from, and run them again in the backward pass.

        Pixels and gradients stay the same, bit for bit. Of each live chunk only the caches are kept, and of the one
        that is run again only what enters its blocks.
        """
        self._checkpointing = True
        for block in self._vae.decoder.modules():
            if isinstance(block, WanResidualBlock | WanResample):
                block.forward = partial(_checkpointed, block.forward, _slots(block))

    def _chunk(self, piece: Tensor, cache: Cache, first: bool) -> tuple[Tensor, Cache]:
        run = partial(_run_chunk, self._vae.decoder)
        if self._checkpointing and torch.is_grad_enabled():
            return _again(run, piece, cache, first)
        return run(piece, cache, first)

    def _frame(self, chunk: Tensor, frame: int) -> Tensor:
        """One of a chunk's pixel frames, counted from its end: its last is the one that its latent frame stands for."""
        return chunk[:, frame - self.chunk_of(frame) * self.stride - 1]

    def _unpatched(self, out: Tensor) -> Tensor:
        patch = self._vae.config.patch_size
        return out if patch is None else unpatchify(out, patch)


def _window(chunk: int, context: int | None) -> int:
    """The first of the chunks that get the gradient of this one's pixels."""
    return 0 if context is None else max(0, chunk - context)


def stride(vae: Any) -> int:
    """By how much the VAE compresses time."""
    return 2 ** sum(vae.config.temperal_downsample)


def spatial_factor(vae: Any) -> int:
    """By how much the VAE compresses height and width."""
    return 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.patch_size or 1)


def _run_chunk(decoder: nn.Module, piece: Tensor, cache: Cache, first: bool) -> tuple[Tensor, Cache]:
    """One chunk as a pure function: a second run meets the caches that the first one met."""
    cache = list(cache)
    out: Tensor = decoder(piece, feat_cache=cache, feat_idx=[0], first_chunk=first)
    return out, cache


def _slots(block: nn.Module) -> int:
    """How many caches a block has: one for each of its causal layers that looks back."""
    if isinstance(block, WanResidualBlock):
        return 2
    return int(block.mode == "upsample3d")


def _checkpointed(
    forward: Callable[..., Tensor], slots: int, x: Tensor, feat_cache: Cache, feat_idx: list[int]
) -> Tensor:
    """A block as diffusers calls it, with caches that change in place, around a pure function that is checkpointed."""
    if not torch.is_grad_enabled():
        return forward(x, feat_cache=feat_cache, feat_idx=feat_idx)
    own = slice(feat_idx[0], feat_idx[0] + slots)
    out, feat_cache[own] = _again(partial(_run_block, forward), x, feat_cache[own])
    feat_idx[0] += slots
    return out


def _run_block(forward: Callable[..., Tensor], x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    cache = list(cache)
    out = forward(x, feat_cache=cache, feat_idx=[0])
    return out, cache


def _again(run: Callable[..., tuple[Tensor, Cache]], *arguments: Any) -> tuple[Tensor, Cache]:
    result: tuple[Tensor, Cache] = recompute(run, *arguments)
    return result
