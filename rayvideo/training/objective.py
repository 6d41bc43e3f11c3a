"""What is minimised: InstructVideo's loss, and those of the paper's baselines. Pure functions of a batch's numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def reward_loss(rewards: Tensor) -> Tensor:
    """Mean of 1 - R over videos [B] (paper Eq. 9 up to the constant: the gradient is that of -R).

    Also DRaFT's (Clark et al. 2024), whose rewards are those of clips made from pure noise.
    """
    return (1 - rewards).mean()


def standardised(rewards: Tensor, group: int) -> Tensor:
    """Rewards [N] as distances from the mean of their group, in its standard deviations; 0 if none differ.

    Each `group` samples in a row are a group.
    """
    groups = rewards.view(-1, group)
    return ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True).clamp(min=1e-8)).flatten()


def rwr_weights(advantages: Tensor, temperature: float) -> Tensor:
    """exp(advantage / β) of samples [N], normalised to a mean of 1 (Lee et al. 2023).

    Advantages are `standardised` rewards, so that β does not depend on the judge's scale.
    """
    return torch.softmax(advantages / temperature, dim=0) * len(advantages)


def rwr_loss(errors: Tensor, weights: Tensor) -> Tensor:
    """Reward-weighted regression: mean of weight·(noise-prediction error), both [B]."""
    return (weights * errors).mean()


def ddpo_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Clipped policy gradient of one chain step of samples [B] (DDPO-IS, Black et al. 2024).

    The ratio of the probabilities now and when sampled, clipped to 1 ± `clip_range`; of both objectives the worse one.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(advantages * ratio, advantages * clipped).mean()
