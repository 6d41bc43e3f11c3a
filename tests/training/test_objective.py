from __future__ import annotations

import torch

from rayvideo.recipe import Training
from rayvideo.training.objective import reward_loss
from rayvideo.training.schedule import learning_rate


def test_the_loss_falls_by_a_bth_for_each_reward():
    rewards = torch.tensor([0.2, 0.5, -0.1, 0.0], requires_grad=True)
    loss = reward_loss(rewards)
    (slope,) = torch.autograd.grad(loss, rewards)
    assert torch.isclose(loss, torch.tensor(1 - 0.15))
    assert torch.equal(slope, torch.full((4,), -0.25))


def test_the_learning_rate_climbs_and_stays():
    options = Training(lr=2.0, warmup_steps=4)
    assert [learning_rate(options, step) for step in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert learning_rate(Training(lr=2.0, warmup_steps=0), 1) == 2.0
