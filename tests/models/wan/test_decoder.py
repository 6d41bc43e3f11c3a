"""Chosen frames out of the causal VAE: the whole clip's pixels, and as much of the exact gradient as is asked for."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rayvideo.models import load_model
from rayvideo.models.decoding import frame_by_frame
from rayvideo.models.wan.decoder import WindowedDecoder
from tests import tiny_wan
from tests.models.wan.conftest import Folder, Pipeline

KINDS: tuple[tiny_wan.Kind, ...] = ("2.1", "5B")
"""The plain VAE and the residual one."""
CONTEXTS = (None, 0, 1, 2, 9)
FRAMES, SIZE = 17, 32
"""Of the clips: 5 latent frames."""

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def model(wan: Folder, kind: tiny_wan.Kind) -> Any:
    return load_model(wan(kind), parts=("vae",))


def clips(model: Any, count: int = 1) -> Tensor:
    shape = model.latent_shape(FRAMES, SIZE, SIZE)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def whole(vae: Any, model: Any, latents: Tensor) -> Tensor:
    """What the VAE's own decoder makes of them, [B, F, 3, H, W] in [0, 1]."""
    decoded = [vae.decode(model.normaliser.restore(clip)).sample for clip in latents.split(1)]
    assert max(pixels.abs().max() for pixels in decoded) < 1, "its clamp must have nothing to do"
    return torch.cat(decoded).transpose(1, 2) * 0.5 + 0.5


def gradient(model: Any, latents: Tensor, indices: list[int], context: int | None) -> Tensor:
    latents = latents.clone().requires_grad_()
    pixels = model.decode_frames(latents, torch.tensor([indices]), context=context)
    return torch.autograd.grad(pixels.square().sum(), latents)[0]


@torch.no_grad()
def test_pixels_are_the_vaes_bit_for_bit_whatever_the_context(
    model: Any, theirs: Pipeline, kind: tiny_wan.Kind
) -> None:
    latents = clips(model, 2)
    wanted = whole(theirs(kind).vae, model, latents)
    assert torch.equal(model.decode_frames(latents), wanted)
    indices = torch.tensor([[0, 1, 4, 5], [12, 3, 16, 12]])
    chosen = wanted[torch.arange(2)[:, None], indices]
    for context in CONTEXTS:
        assert torch.equal(model.decode_frames(latents, indices, context=context), chosen)
        with torch.enable_grad():
            assert torch.equal(model.decode_frames(latents.requires_grad_(), indices, context=context), chosen)


def test_the_gradient_without_a_context_is_that_of_plain_autograd(
    model: Any, theirs: Pipeline, kind: tiny_wan.Kind
) -> None:
    latents, indices = clips(model), [2, 9, 15]
    plain = latents.clone().requires_grad_()
    pixels = whole(theirs(kind).vae, model, plain)[:, indices]
    (wanted,) = torch.autograd.grad(pixels.square().sum(), plain)
    for context in (None, 9):
        torch.testing.assert_close(gradient(model, latents, indices, context), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("frame", "own"), [(0, 0), (1, 1), (4, 1), (9, 3), (16, 4)])
def test_the_gradient_within_a_window_is_the_exact_one_and_none_lies_outside(model: Any, frame: int, own: int) -> None:
    latents = clips(model)
    exact = gradient(model, latents, [frame], None)
    assert exact[:, :, : own + 1].ne(0).flatten(3).any(3).all(), "every earlier latent frame matters"
    assert not exact[:, :, own + 1 :].any(), "no later one does"
    for context in (0, 1, 2):
        found, first = gradient(model, latents, [frame], context), max(0, own - context)
        assert torch.equal(found[:, :, first:], exact[:, :, first:])
        assert not found[:, :, :first].any()


def test_windows_apart_leave_what_lies_between_without_a_gradient(model: Any) -> None:
    latents = clips(model)
    both = gradient(model, latents, [4, 16], 0)
    assert both.ne(0).any(dim=(0, 1, 3, 4)).tolist() == [False, True, False, False, True]
    for frame, own in ((4, 1), (16, 4)):
        assert torch.equal(both[:, :, own], gradient(model, latents, [frame], 0)[:, :, own])
    touching = gradient(model, latents, [12, 16], 1)
    assert torch.equal(touching, gradient_without_first_frames(model, latents, [12, 16], 2))


def gradient_without_first_frames(model: Any, latents: Tensor, indices: list[int], first: int) -> Tensor:
    """The exact gradient, with that of the latent frames before `first` set to 0."""
    exact = gradient(model, latents, indices, None)
    exact[:, :, :first] = 0
    return exact


def test_pixels_that_saturate_keep_their_values_and_their_gradient(
    model: Any, theirs: Pipeline, kind: tiny_wan.Kind
) -> None:
    with torch.no_grad():
        model._vae.decoder.conv_out.bias += 5
    latents = clips(model).requires_grad_()
    pixels = model.decode_frames(latents)
    assert pixels.min() > 1
    assert model._vae.decode(model.normaliser.restore(latents)).sample.max() == 1
    assert torch.autograd.grad(pixels.sum(), latents)[0].abs().sum() > 0


def test_checkpointing_changes_no_bit_and_saves_memory(model: Any) -> None:
    latents, indices = clips(model), torch.tensor([[3, 10, 16]])
    results, held = [], []
    for again in (False, True):
        if again:
            model._decoder.checkpoint()
        gc.collect()
        start = latents.clone().requires_grad_()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            pixels = model.decode_frames(start, indices, context=1)
        held.append(sum(event.self_cpu_memory_usage for event in profiler.events()))
        (found,) = torch.autograd.grad(pixels.square().sum(), start)
        results.append((pixels.detach(), found))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert results[0][1].any()
    assert held[1] < 0.6 * held[0]
    with torch.no_grad():
        assert torch.equal(model.decode_frames(latents, indices), results[0][0])
        model.encode_frames(torch.rand(1, 5, 3, SIZE, SIZE))


def test_the_vae_itself_decodes_as_before_beside_a_checkpointed_decoder(
    model: Any, theirs: Pipeline, kind: tiny_wan.Kind
) -> None:
    latents = clips(model)
    WindowedDecoder(model._vae).checkpoint()
    with torch.no_grad():
        assert torch.equal(whole(model._vae, model, latents), whole(theirs(kind).vae, model, latents))
    assert torch.equal(whole(model._vae, model, latents.requires_grad_()), whole(theirs(kind).vae, model, latents))


def test_frames_up_to_the_last_chosen_chunk_are_decoded(model: Any) -> None:
    assert model.frames_to_decode(torch.tensor([[0, 1, 4], [3, 6, 5], [0, 0, 0], [16, 2, 2]]), FRAMES) == 5 + 9 + 1 + 17


def test_a_frame_that_the_clip_does_not_have_is_an_error(model: Any) -> None:
    with pytest.raises(IndexError):
        model.decode_frames(clips(model), torch.tensor([[17]]))


@pytest.mark.parametrize("context", CONTEXTS)
def test_frames_decoded_apart_are_the_same_and_so_are_their_gradients(model: Any, context: int | None) -> None:
    latents, indices = clips(model, 2), torch.tensor([[0, 15, 9, 16], [12, 3, 12, 1]])
    exact = torch.zeros_like(latents)
    for row, column in ((row, column) for row in range(2) for column in range(4)):
        slope = gradient(model, latents[row : row + 1], [int(indices[row, column])], context)
        exact[row] += slope[0]
    latents.requires_grad_()
    pixels = frame_by_frame(partial(model.decode_apart, context=context), latents, indices)
    assert torch.equal(pixels, model.decode_frames(latents, indices, context=context))
    torch.testing.assert_close(torch.autograd.grad(pixels.square().sum(), latents)[0], exact, rtol=1e-4, atol=1e-6)


def test_what_lies_before_the_windows_is_run_once(model: Any) -> None:
    runs: list[bool] = []
    model._vae.decoder.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    latents, indices = clips(model).requires_grad_(), torch.tensor([[9, 14, 16]])  # of chunks 3, 4 and 4
    pixels = frame_by_frame(partial(model.decode_apart, context=1), latents, indices)
    assert runs == [False] * 5
    runs.clear()
    pixels.sum().backward()
    assert runs == [False, False, True, True, False, True, True]  # up to chunk 2, its window, chunk 2, the other's
