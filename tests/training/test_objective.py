from __future__ import annotations

import math

import pytest
import torch

from rayvideo.sections import Training
from rayvideo.training.objectives.ddpo import ddpo_loss, log_probability
from rayvideo.training.objectives.rwr import rwr_loss, rwr_weights
from rayvideo.training.pathwise import reward_loss
from rayvideo.training.sampled import standardised
from rayvideo.training.schedule import learning_rate


def test_the_loss_falls_by_a_bth_for_each_reward():
    rewards = torch.tensor([0.2, 0.5, -0.1, 0.0], requires_grad=True)
    loss = reward_loss(rewards)
    (slope,) = torch.autograd.grad(loss, rewards)
    assert torch.isclose(loss, torch.tensor(1 - 0.15))
    assert torch.equal(slope, torch.full((4,), -0.25))


def test_rewards_are_compared_whatever_the_judges_scale():
    rewards = torch.tensor([1.0, 2.0, 4.0, 5.0])
    expected = (rewards - 3) / math.sqrt(10 / 3)
    torch.testing.assert_close(standardised(rewards, 4), expected)
    torch.testing.assert_close(standardised(1e-3 * rewards + 0.25, 4), expected, rtol=1e-3, atol=0)
    assert standardised(torch.full((3,), 0.25), 3).tolist() == [0, 0, 0]


def test_samples_of_a_caption_are_compared_among_themselves():
    expected = torch.tensor([-1.0, 0, 1, *(torch.tensor([-1.0, -1, 2]) / math.sqrt(3))])
    torch.testing.assert_close(standardised(torch.tensor([0.0, 1, 2, 10, 10, 13]), 3), expected)


def test_rwr_weights_are_exponentials_with_a_mean_of_one():
    weights = rwr_weights(torch.tensor([-1.0, 0.2, 0.8]), 0.5)
    ratio = math.exp((0.8 + 1.0) / 0.5)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[2] / weights[0]).item() == pytest.approx(ratio, rel=1e-4)
    assert rwr_loss(torch.tensor([1.0, 2.0, 3.0]), weights).item() == pytest.approx(
        (weights @ torch.tensor([1.0, 2.0, 3.0])).item() / 3
    )


@pytest.mark.parametrize(
    ("advantage", "ratio", "slope"),
    [(2.0, 1.0, -2.0), (-2.0, 1.0, 2.0), (2.0, 1.2, 0.0), (-2.0, 1.2, 2.4), (2.0, 0.8, -1.6), (-2.0, 0.8, 0.0)],
)
def test_ddpo_stops_where_a_step_has_moved_far_enough(advantage, ratio, slope):
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = ddpo_loss(log_probs, torch.zeros(1), torch.tensor([advantage]), 0.1)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient.item() == pytest.approx(slope)


def test_the_log_probability_is_that_of_a_normal_distribution():
    values, mean, sigma = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor(0.3)
    exact = torch.distributions.Normal(mean, sigma).log_prob(values).flatten(1).mean(1)
    constant = -math.log(0.3) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_probability(values, mean, sigma) + constant, exact)


def test_the_learning_rate_climbs_and_stays():
    options = Training(lr=2.0, warmup_steps=4)
    assert [learning_rate(options, step) for step in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert learning_rate(Training(lr=2.0, warmup_steps=0), 1) == 2.0
