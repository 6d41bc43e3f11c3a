"""Frames decoded one at a time: the same pixels and gradients, and no more than one graph of the decoder alive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rayvideo.models import load_model
from rayvideo.models.decoding import Where, frame_by_frame


def test_pixels_and_gradients_are_those_of_decoding_together(tiny_pipeline: Path) -> None:
    model = load_model(tiny_pipeline, parts=("vae",))
    indices = torch.tensor([[0, 2, 3], [1, 2, 2]])  # a repeated frame counts twice
    weights = torch.randn(2, 3, 3, 64, 64)
    found = []
    for decode in (model.decode_frames, lambda z, chosen: frame_by_frame(model.decode_apart, z, chosen)):
        latents = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        pixels = decode(latents, indices)
        (slope,) = torch.autograd.grad((pixels * weights).sum(), latents)
        found.append((pixels.detach(), slope))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert not found[1][1][0, :, 1].any()  # of the first clip's frame 1, which was not chosen


def test_each_few_are_decoded_with_a_graph_of_their_own() -> None:
    seen: list[bool] = []

    def decode(latents: Tensor, indices: Tensor) -> Iterator[tuple[Where, Tensor]]:
        for column in range(indices.shape[1]):
            seen.append(torch.is_grad_enabled())
            yield ([0], [column]), latents.square().sum((1, 2, 3, 4))[:, None, None, None].expand(-1, 3, 2, 2)

    latents = torch.ones(1, 1, 1, 1, 1, requires_grad=True)
    frame_by_frame(decode, latents, torch.tensor([[0, 1, 2]])).sum().backward()
    assert seen == [False] * 3 + [True] * 3
    assert latents.grad is not None
    assert latents.grad.item() == 3 * 12 * 2
