"""Diversity falls when seeds give one picture, and does not rise with contrast."""

from __future__ import annotations

import pytest
import torch

from rayvideo.evaluation.diversity import coarse, diversity


def clips(seeds: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([coarse(torch.rand(4, 3, 16, 16) * 0.5 + 0.25) for _ in range(seeds)])


def test_unrelated_pictures_are_one_apart_and_one_picture_none() -> None:
    found = clips()
    assert diversity(found).item() == pytest.approx(1, abs=0.05)
    assert diversity(found[:1].expand(3, -1, -1, -1, -1)).item() == 0


def test_more_vivid_is_not_more_diverse() -> None:
    vivid = (clips() - 0.5) * 1.8 + 0.5
    assert diversity(vivid).item() == pytest.approx(diversity(clips()).item(), rel=1e-4)


def test_what_seeds_have_in_common_counts_against_it() -> None:
    found = clips()
    halfway = (found + found.mean(0)) / 2
    assert diversity(halfway) < 0.8 * diversity(found)


def test_a_flat_clip_and_a_single_seed() -> None:
    assert diversity(torch.full((2, 4, 3, 16, 16), 0.5)).item() == 0
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        diversity(clips(1))


def test_frames_of_any_size_are_compared_on_one_grid() -> None:
    assert coarse(torch.rand(4, 3, 40, 64)).shape == (4, 3, 16, 16)
