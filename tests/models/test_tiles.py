"""Clips decoded tile by tile: where pixels lie, how tiles fade into each other, how far they are from the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayvideo.models import ModelError, load_model
from rayvideo.models.tiles import decode_tiles
from tests import tiny_wan

FACTOR = 4
"""Pixels a latent of the decoders that are made up here."""


def enlarged(latents: Tensor) -> Tensor:
    """A decoder that looks at nothing around a latent: [B, 3, f, h, w] to [B, f, 3, 4h, 4w]."""
    return latents.transpose(1, 2).repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (9, 8), (8, 21), (30, 23)])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 4), (32, 16), (32, 28)])
def test_every_pixel_is_where_it_belongs(size: tuple[int, int], tile: int, overlap: int) -> None:
    latents = torch.rand(2, 3, 2, *size)
    seen: list[torch.Size] = []

    def decode(part: Tensor) -> Tensor:
        seen.append(part.shape[-2:])
        return enlarged(part)

    pixels = decode_tiles(decode, latents, FACTOR, tile, overlap)
    torch.testing.assert_close(pixels, enlarged(latents), atol=1e-6, rtol=1e-6)
    assert set(seen) == {(min(size[0], 8), min(size[1], 8))}, "no tile is a sliver that sees next to nothing"


def test_tiles_fade_into_each_other() -> None:
    """Each tile says its own mean, as norms do: from one to the next pixels move step by step."""
    latents = torch.arange(20.0).expand(1, 3, 1, 20, 20)

    def means(part: Tensor) -> Tensor:
        return enlarged(part.mean((-1, -2), keepdim=True).expand_as(part))

    row = decode_tiles(means, latents, FACTOR, tile=32, overlap=8)[0, 0, 0, 40]
    steps = row.diff()
    assert row[0] == 3.5
    assert row[-1] == 15.5
    assert steps.min() >= 0
    assert steps.max() <= 6 / 9 + 1e-5  # from a tile's mean to the next one's, over the 8 pixels that both have


def test_a_clip_no_larger_than_a_tile_is_decoded_whole(tiny_pipeline: Path) -> None:
    model = load_model(tiny_pipeline, parts=("vae",))
    latents = torch.randn(1, *model.latent_shape(2, 64, 64))
    with torch.no_grad():
        assert torch.equal(decode_tiles(model.decode_frames, latents, 8), model.decode_frames(latents))


@pytest.mark.parametrize(
    ("build", "frames", "factor", "allowed"),
    [
        (lambda folder, cog: folder, 2, 8, 0.20),
        (lambda folder, cog: cog, 9, 8, 0.20),
        (lambda folder, cog: tiny_wan.save_pipeline(folder.parent / "wan"), 5, 8, 0.20),
        (lambda folder, cog: tiny_wan.save_pipeline(folder.parent / "5B", "5B"), 5, 16, 0.20),
    ],
    ids=["ModelScope", "CogVideoX", "Wan 2.1", "TI2V-5B"],
)
def test_tiles_come_near_to_the_whole(
    tiny_pipeline: Path, tiny_cog: Path, build: Callable[[Path, Path], Path], frames: int, factor: int, allowed: float
) -> None:
    """Untrained VAEs, whose attention is blind, on noise: measured 0.07 to 0.15 of the pixels' standard deviation."""
    model = load_model(build(tiny_pipeline, tiny_cog), parts=("vae",))
    latents = torch.randn(1, *model.latent_shape(frames, 160, 192), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.decode_frames(latents)
    errors = []
    for tile, overlap in ((128, 64), (64, 32)):
        tiled = decode_tiles(model.decode_frames, latents, factor, tile, overlap)
        assert tiled.shape == whole.shape
        errors.append(((tiled - whole).square().mean().sqrt() / whole.std()).item())
    assert 0 < errors[0] < allowed
    assert errors[0] < errors[1], "larger tiles see more"


def test_there_is_no_gradient() -> None:
    latents = torch.rand(1, 3, 1, 20, 20, requires_grad=True)
    assert not decode_tiles(enlarged, latents, FACTOR, 32, 16).requires_grad


def test_a_decoder_of_whole_clips_only_is_refused() -> None:
    def fixed(part: Tensor) -> Tensor:
        return torch.zeros(1, 1, 3, 80, 80)

    with pytest.raises(
        ModelError,
        match="^model.tiled_decoding true: of a tile of 32x32 pixels this model makes 80x80, since it decodes whole "
        "clips only; allowed here is false$",
    ):
        decode_tiles(fixed, torch.rand(1, 3, 1, 20, 20), FACTOR, 32, 16)
