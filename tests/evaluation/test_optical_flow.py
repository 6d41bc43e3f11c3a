"""Optical flow against shifts that are known, and beside `motion` on clips that were spoilt on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.measures import FAULTS
from rayvideo.evaluation.metrics import measure
from rayvideo.evaluation.optical_flow import mean_flow
from rayvideo.menagerie.build import frames_first
from rayvideo.menagerie.world import ACTIONS, Scene, draw

SCENES = [Scene("cat", "red", "grass", action, seed) for seed, action in enumerate(ACTIONS)]


def texture(height: int = 64, width: int = 64) -> Tensor:
    cells = torch.rand(1, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    return interpolate(cells, (height, width), mode="bicubic")[0, 0].clamp(0, 1)


def panned(still: Tensor, step: int, frames: int = 6) -> Tensor:
    return torch.stack([still.roll(step * i, -1) for i in range(frames)])


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_flow_is_how_far_everything_moves_in_frame_widths(step: int) -> None:
    assert mean_flow(panned(texture(), step)).item() == pytest.approx(step / 64, rel=0.05)


def test_the_width_is_the_unit_at_any_size() -> None:
    assert mean_flow(panned(texture(32, 96), 2)).item() == pytest.approx(2 / 96, rel=0.1)
    large = interpolate(panned(texture(), 2)[None], size=(512, 512), mode="bicubic")[0].clamp(0, 1)
    assert mean_flow(large).item() == pytest.approx(2 / 64, rel=0.1)


def test_contrast_is_no_movement() -> None:
    clip = panned(texture(), 2)
    assert mean_flow(0.3 + 0.2 * clip).item() == pytest.approx(mean_flow(clip).item(), rel=0.01)
    assert mean_flow(torch.full((6, 64, 64), 0.3)) == 0


def test_frames_that_are_too_few_or_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 frames of 12 pixels, got 1 of 64"):
        mean_flow(texture()[None])
    with pytest.raises(ValueError, match="got 6 of 8"):
        mean_flow(torch.zeros(6, 8, 8))


@pytest.fixture(scope="module")
def spoilt() -> dict[str, dict[str, float]]:
    """Fault -> measure -> the faulty clips' mean as a multiple of the clean ones'."""
    clean = [frames_first(draw(scene)) for scene in SCENES]
    chance = torch.Generator().manual_seed(0)
    before = means(clean)
    found = {}
    for name, fault in FAULTS.items():
        after = means([fault(clip, scene, chance) for clip, scene in zip(clean, SCENES, strict=True)])
        found[name] = {key: after[key] / value for key, value in before.items()}
    return found


def means(clips: list[Tensor]) -> dict[str, float]:
    measures = [measure(clip) for clip in clips]
    return {key: sum(each[key] for each in measures) / len(measures) for key in measures[0]}


@pytest.mark.parametrize(
    ("fault", "flow", "motion", "flicker"),
    [
        ("frozen", (0, 0.05), (0, 0.05), (0, 0.05)),
        ("slowed to half", (0.4, 0.6), (0.6, 0.95), (0, 0.6)),
        ("frames in random order", (1.4, 4), (0, 0.6), (2, 20)),
        ("jittered, up to 2 pixels", (1.5, 4), (0.7, 1.1), (2, 20)),
        ("noise in its place", (0.5, 2), (0, 0.3), (10, 100)),  # flow alone takes noise for a lively clip
        ("light flickers, 0.08", (1.05, 1.5), (0.9, 1.1), (3, 30)),
        ("grain, 0.06", (1.05, 1.5), (0.9, 1.1), (3, 30)),
        ("colours shifted", (0.9, 1.1), (0.9, 1.1), (0.9, 1.1)),
        ("faded to 0.4", (0.99, 1.01), (0.99, 1.01), (0.99, 1.01)),
    ],
)
def test_what_docs_say_that_flow_motion_and_flicker_see(
    spoilt: dict[str, dict[str, float]], fault: str, flow: tuple, motion: tuple, flicker: tuple
) -> None:
    for metric, (low, high) in {"optical_flow": flow, "motion": motion, "flicker": flicker}.items():
        assert low <= spoilt[fault][metric] <= high, (metric, spoilt[fault][metric])


def test_no_fault_that_is_told_of_goes_untested(spoilt: dict[str, dict[str, float]]) -> None:
    (cases,) = test_what_docs_say_that_flow_motion_and_flicker_see.pytestmark
    assert {case[0] for case in cases.args[1]} == set(spoilt)
