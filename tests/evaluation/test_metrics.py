"""Each measure moves with what it is for, and only with that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.metrics import (
    FeatureExtractor,
    colourfulness,
    contrast,
    features_of,
    flicker,
    frame_consistency,
    kid,
    load_features,
    measure,
    motion,
    saturation,
)
from rayvideo.sections import Features


class Rows(FeatureExtractor):
    """Features as a user may get them wrong."""

    @classmethod
    def load(cls, checkpoint):
        if checkpoint:
            raise FileNotFoundError(checkpoint)
        return cls()

    def features(self, frames):
        return frames.mean((2, 3)).tolist() if len(frames) > 1 else frames


def square(speed: float, *, contrast: float = 0.6, frames: int = 16, size: int = 64) -> Tensor:
    """A textured background on which a blob with soft edges glides; `speed` in pixels a frame."""
    torch.manual_seed(0)
    clip = 0.5 - 0.3 * contrast + 0.03 * torch.rand(3, size, size).expand(frames, 3, size, size)
    along = torch.arange(size) + 0.5
    for t in range(frames):
        near = [torch.sigmoid(10 - (along - centre).abs()) for centre in (32.0, 16 + speed * t)]
        clip[t] += contrast * near[0][:, None] * near[1][None]
    return clip


def test_a_gliding_blob_is_motion_and_no_flicker() -> None:
    still, slow, fast = square(0), square(1), square(2)
    assert motion(still) == flicker(still) == 0
    assert motion(slow) > 0.1
    assert motion(fast).item() == pytest.approx(2 * motion(slow).item(), rel=0.2)
    assert flicker(fast) < 0.01 * motion(fast)


@pytest.mark.parametrize("speed", [0, 1])
@pytest.mark.parametrize("noise", ["pixels", "light", "blobs"])
def test_what_is_new_in_every_frame_is_flicker_and_not_motion(speed: float, noise: str) -> None:
    clip = square(speed)
    shape = {"pixels": (16, 3, 64, 64), "light": (16, 1, 1, 1), "blobs": (16, 3, 4, 4)}[noise]
    new = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    size = 64 if noise == "blobs" else shape[2:]
    worse = (clip + 0.1 * torch.nn.functional.interpolate(new, size=size)).clamp(0, 1)
    assert flicker(worse) > flicker(clip) + 0.2
    assert motion(worse).item() == pytest.approx(motion(clip).item(), abs=0.015)


def test_flicker_of_noise_is_as_documented() -> None:
    clip = 0.5 + 0.1 * torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert (flicker(clip) * contrast(clip)).item() == pytest.approx(0.056, rel=0.02)


def test_vivid_colours_are_neither_motion_nor_flicker() -> None:
    noise = 0.01 * torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pale = square(1, contrast=0.2) + noise
    vivid = 0.5 + 2 * (pale - 0.5)
    assert motion(vivid).item() == pytest.approx(motion(pale).item(), rel=1e-4)
    assert flicker(vivid).item() == pytest.approx(flicker(pale).item(), rel=1e-4)
    assert contrast(vivid).item() == pytest.approx(2 * contrast(pale).item(), rel=1e-4)


def test_frame_consistency_falls_with_change() -> None:
    assert frame_consistency(square(0)).item() == pytest.approx(1, abs=1e-5)
    assert frame_consistency(square(1)) > frame_consistency(square(3)) > 0.5
    assert frame_consistency(torch.rand(16, 3, 64, 64, generator=torch.manual_seed(0))).abs() < 0.05


def test_colour_measures() -> None:
    grey = torch.full((4, 3, 8, 8), 0.5)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(4, 3, 8, 8)
    washed_out = 0.5 + 0.2 * (red - 0.5)
    assert saturation(grey) == colourfulness(grey) == 0
    assert saturation(red) == 1
    assert saturation(washed_out).item() == pytest.approx(0.2 / 0.6)
    assert colourfulness(red).item() == pytest.approx(0.3 * 255 * (1 + 0.25) ** 0.5)
    # Half red, half green: opponents ±255 and 127.5, so deviations 255 and 0, means 0 and 127.5.
    half = red.clone()
    half[..., 4:] = torch.tensor([0, 1.0, 0]).view(3, 1, 1)
    assert colourfulness(half).item() == pytest.approx(255 + 0.3 * 127.5)


def test_every_measure_of_a_flat_clip_is_zero() -> None:
    assert set(measure(torch.zeros(16, 3, 64, 64)).values()) == {0.0}


def test_too_few_frames_for_motion_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 frames, got 3"):
        motion(torch.zeros(3, 3, 8, 8))


class Identity(torch.nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_kid_is_torchmetrics_kid_and_grows_with_the_distance() -> None:
    torch.manual_seed(0)
    real, same, other = torch.rand(60, 12), torch.rand(60, 12), torch.rand(60, 12) + 0.5
    theirs = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=60, normalize=False)
    theirs.update(real.view(60, 3, 2, 2), real=True)
    theirs.update(other.view(60, 3, 2, 2), real=False)
    assert kid(other, real, size=60, subsets=1).item() == pytest.approx(theirs.compute()[0].item(), rel=1e-4)
    assert kid(same, real).mean().abs() < 0.05 * kid(other, real).mean()
    assert torch.equal(kid(other, real, size=20), kid(other, real, size=20))
    assert not torch.equal(kid(other, real, size=20), kid(other, real, size=20, seed=1))
    assert kid(other[:7], real).shape == (50,)
    assert len(set(kid(other, real, size=20).tolist())) == 50, "draws that are the same one"


def test_kid_leaves_the_random_numbers_of_others_alone() -> None:
    rows = torch.rand(20, 4)
    state = torch.get_rng_state()
    kid(rows, rows + 1, size=10)
    assert torch.equal(torch.get_rng_state(), state)


def test_kid_is_the_mean_over_pairs_of_what_is_drawn() -> None:
    """The unbiased squared MMD by its definition, of draws as `kid` says that they are made."""
    generated, reference = torch.rand(9, 4, dtype=torch.float64), torch.rand(11, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for found in kid(generated, reference, size=6, subsets=3, seed=3):
        y = reference[torch.randperm(11, generator=generator)[:6]]
        x = generated[torch.randperm(9, generator=generator)[:6]]
        own, other, cross = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        off = ~torch.eye(6, dtype=torch.bool)
        assert found.item() == pytest.approx((own[off].mean() + other[off].mean() - 2 * cross.mean()).item())


def test_features_that_cannot_be_had_are_named() -> None:
    options = Features(type=f"{__name__}:Rows", checkpoint="gone.pt", reference="clips")
    with pytest.raises(
        EvaluationError, match=r"^evaluation\.features: '.*:Rows' can't be loaded from 'gone\.pt': FileNot"
    ):
        load_features(options)
    rows = load_features(options.model_copy(update={"checkpoint": None}))
    for count, what in ((2, "type list"), (1, r"shape \[1, 3, 8, 8\]")):
        wanted = rf"features\(\) of Rows returned {what} for {count} frames; allowed: a tensor \[{count}, D\]"
        with pytest.raises(EvaluationError, match=wanted):
            features_of(rows, torch.zeros(count, 3, 8, 8))
