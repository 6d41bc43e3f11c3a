"""Feed-forward layers that take their tokens in pieces: what is between their two matrices is several times as wide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from rayvideo.editing import recompute

PIECES = 8


def feed_forward_in_pieces(network: nn.Module, pieces: int = PIECES) -> None:
    """From now on no feed-forward layer of diffusers' in `network` holds more than one piece's inner activations.

    Each piece is run again in the backward pass. Tokens don't see each other there, so that outputs and gradients stay
    the same but for the last bits.
    """
    for layer in network.modules():
        if isinstance(layer, FeedForward):
            layer.forward = partial(_in_pieces, layer.forward, pieces)


def _in_pieces(forward: Callable[..., Tensor], pieces: int, tokens: Tensor, *rest: Any) -> Tensor:
    """Tokens [..., C] along their first dimension that has enough."""
    along = next((dim for dim, size in enumerate(tokens.shape[:-1]) if size >= pieces), 0)
    return torch.cat([recompute(forward, piece, *rest) for piece in tokens.chunk(pieces, along)], along)
