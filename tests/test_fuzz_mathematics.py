"""Properties of the editing and reward functions for every size that a recipe allows."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from rayvideo import editing
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from tests.tiny import REFERENCE_SCHEDULE


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 90), st.booleans(), st.integers(0, 2**31))
def test_one_frame_of_each_segment(batch: int, segments: int, more: int, random: bool, seed: int) -> None:
    frames = segments + more
    indices = sample_segments(batch, frames, segments, generator=torch.Generator().manual_seed(seed), random=random)
    assert indices.shape == (batch, segments)
    starts = torch.arange(segments + 1) * frames // segments
    assert (indices >= starts[:-1]).all()
    assert (indices < starts[1:]).all()


@given(st.integers(1, 200), st.floats(0, 50))
def test_attenuation_is_symmetric_and_never_raises_a_frame(frames: int, rate: float) -> None:
    weights = attenuation(torch.arange(frames)[None], frames, rate)
    assert weights.shape == (1, frames)
    assert ((weights >= 0) & (weights <= 1)).all()
    middle = frames // 2
    assert weights[0, middle] == weights.max()
    for distance in range(min(middle, frames - 1 - middle) + 1):
        assert weights[0, middle - distance] == weights[0, middle + distance]
    assert (weights[0, : middle + 1].diff() >= 0).all()
    assert (weights[0, middle:].diff() <= 0).all()


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12), st.floats(-5, 5, width=32))
def test_a_video_reward_lies_among_its_frames_and_moves_with_them(scores: list[float], shift: float) -> None:
    own = torch.tensor([scores], dtype=torch.float64)
    ones = torch.ones_like(own)
    assert own.min() - 1e-9 <= video_reward(own, ones).item() <= own.max() + 1e-9
    assert video_reward(own + shift, ones).item() == pytest.approx(video_reward(own, ones).item() + shift, abs=1e-9)


@given(st.integers(1, 100), st.floats(0.01, 1))
def test_timesteps_descend_within_the_schedule(steps: int, strength: float) -> None:
    scheduler = DDIMScheduler(**REFERENCE_SCHEDULE)
    count = int(strength * steps)
    if count == 0:
        return  # a recipe refuses it: fewer than editing.grad_steps
    grid = editing.timesteps(scheduler, steps, strength)
    assert len(grid) == count
    assert (grid.diff() < 0).all()
    assert 0 <= int(grid[-1]) <= int(grid[0]) < scheduler.config.num_train_timesteps
    assert grid.tolist() == editing.timesteps(scheduler, steps, 1.0)[-count:].tolist()
