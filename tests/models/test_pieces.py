"""Feed-forward layers in pieces: the same numbers, and never more than a piece's inner activations."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention import FeedForward

from rayvideo.models.pieces import feed_forward_in_pieces


@pytest.mark.parametrize(
    ("shape", "piece"), [((64, 5, 16), 80), ((2, 40, 16), 20), ((1, 3, 16), 3)], ids=["rows", "tokens", "too few"]
)
def test_tokens_in_pieces_give_the_same(shape, piece):
    torch.manual_seed(0)
    whole = torch.nn.Sequential(FeedForward(16))
    parted = copy.deepcopy(whole)
    seen: list[int] = []
    parted[0].net[0].register_forward_hook(lambda module, inputs, out: seen.append(out.shape[:-1].numel()))
    feed_forward_in_pieces(parted, pieces=4)
    tokens = torch.randn(shape, requires_grad=True)
    results = []
    for network in (whole, parted):
        out = network(tokens)
        results.append((out, *torch.autograd.grad(out.square().sum(), [tokens, *network.parameters()])))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(seen) == {piece}
    assert sum(seen) == 2 * shape[0] * shape[1]  # once, and once more in the backward pass
