"""What each context keeps of a frame's gradient: against the whole gradient, on a tiny VAE of Wan's kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayvideo.doctor import context
from rayvideo.models import VideoModel, load_model
from rayvideo.seeding import generator_for
from tests import tiny_wan


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    folder: Path = tiny_wan.save_pipeline(tmp_path_factory.mktemp("models") / "wan")
    return load_model(folder, parts=("vae",))


def test_a_share_is_the_square_of_the_cosine_with_the_whole_gradient(wan: VideoModel) -> None:
    latents = torch.randn(1, *wan.latent_shape(13, 32, 32), generator=torch.Generator().manual_seed(0))
    kept = context.shares(context.by_latent_frame(wan, latents, 12, seed=0))
    assert len(kept) == 4  # latent frames of 13 frames
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(1)
    for number, share in enumerate(kept):
        squares = []
        for bright in (False, True):
            slopes = []
            for window in (number, None):
                leaf = latents.clone().requires_grad_()
                pixels = wan.decode_frames(leaf, torch.tensor([[12]]), context=window)
                noise = torch.randn(pixels.shape, generator=generator_for(0, "doctor", "context"))
                slopes.append(torch.autograd.grad(pixels, leaf, torch.ones_like(pixels) if bright else noise)[0])
            near, whole = (slope.flatten() for slope in slopes)
            squares.append(torch.cosine_similarity(near, whole, dim=0) ** 2)
        assert share == pytest.approx(torch.stack(squares).mean().item(), abs=1e-4)


def test_shares_count_back_from_the_frames_own() -> None:
    assert context.shares(torch.tensor([0.1, 0.0, 0.3, 0.6, 0.0])) == pytest.approx([0.6, 0.9, 0.9, 1.0])
