"""What the benchmarks of a step count, and the trainer that they compare with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.live import Kept, LiveBytes
from benchmarks.release import ReleaseTrainer, Ways
from benchmarks.reward_per_second import reached
from rayvideo.menagerie.build import training_clips
from rayvideo.models.lora import lora_parameters


def test_live_bytes_are_those_alive_at_once_beyond_what_was_there():
    before, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    with LiveBytes() as alive:
        first = before + 1
        second = first * 2
        del first
        third = second.view(10, 100)  # the same storage
        fourth = third + before.view(10, 100)
        assert fourth is not second
    assert alive.peak == 2 * 4000
    with LiveBytes() as alive:
        (weight * weight).sum().backward()
    assert 2 * 4000 <= alive.peak <= 4 * 4000  # the product, and gradients of as many numbers


def test_kept_bytes_are_those_that_autograd_holds():
    weight = torch.nn.Parameter(torch.ones(1000))
    kept = Kept()
    with kept:
        out: torch.Tensor = weight
        for _ in range(3):
            out = (out + 1).exp()  # keeps its own result
        out.sum().backward()
    assert kept.most == 3 * 4000


def test_a_goal_is_reached_between_two_evaluations():
    scores = [(10.0, 0.1), (20.0, 0.3), (30.0, 0.9)]
    assert reached(scores, 0.6) == pytest.approx(25.0)
    assert reached(scores, 0.05) == pytest.approx(5.0)
    assert reached(scores, 1.0) is None


def test_what_the_release_does_otherwise_changes_no_gradient():
    """But for the average, which no gradient sees, and the judge's, which nothing uses."""
    clips, captions = training_clips(2, seed=1)
    whole = Ways(nested=False, averages=False)
    gradients = []
    for ways in (whole, replace(whole, encodes_again=False, two_calls=False, decodes_all=False, tunes_judge=False)):
        trainer = ReleaseTrainer(clips, captions, ways, steps=5, batch=1)
        trainer.step(0)
        weights = lora_parameters(trainer.model.denoiser).values()
        gradients.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-3 * gradients[0].abs().max().item())
