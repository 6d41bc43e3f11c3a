"""The steps of a chain that carry no gradient, at less cost: another solver, fewer steps, guidance where it matters.

Pure functions on tensors, as in `editing`. What they change is where the steps with a gradient start from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.schedules import Chain, Schedule

Solver = Literal["ddim", "dpmsolver++"]


@torch.no_grad()
def roll_out(
    predict_at: Callable[[Tensor], editing.Predict],
    latents: Tensor,
    schedule: Schedule,
    chain: Chain,
    solver: Solver = "ddim",
    steps: int | None = None,
) -> Tensor:
    """Denoise latents [B, C, F, h, w] from a chain's first level to its last, without a gradient.

    Args:
        predict_at: Noise level [] -> the prediction to use there; see `guided_within`.
        solver: "ddim" takes the schedule's own steps: DDIM's, Euler's of a flow.
        steps: How many, of the chain's own levels; None: all of them.

    Raises:
        ValueError: more steps than the chain has.
    """
    chain = chain if steps is None else chain.thinned(steps)

    def predict(latents: Tensor, index: int) -> Tensor:
        chosen = predict_at(chain.levels[index])
        return chosen(latents, chain.timesteps[index].to(latents.device)).to(latents.dtype)

    if solver == "dpmsolver++":
        return _dpm_solver(predict, latents, schedule, chain)
    for index in range(chain.steps):
        predicted = predict(latents, index)
        latents = schedule.step(latents, predicted, chain.levels[index], chain.levels[index + 1])[0]
    return latents


def _dpm_solver(predict: Callable[[Tensor, int], Tensor], latents: Tensor, schedule: Schedule, chain: Chain) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): a line through the last two clean estimates.

    With clip and noise mixed as α·x + σ·ε and λ = log(α/σ), of which a step goes h further, the last one h̄ further,

        D = x̂ + h/(2h̄)·(x̂ − x̂_before),   z' = (σ'/σ)·z + (α' − α·σ'/σ)·D

    The first step, and one that ends without noise, has D = x̂, which makes it DDIM's, or Euler's of a flow.
    """
    signal, noise = schedule.mixture(chain.levels)
    clearness = (signal / noise).log()
    before: Tensor | None = None
    for index in range(chain.steps):
        clean = schedule.clean(latents, predict(latents, index), chain.levels[index])
        ahead = clean
        if before is not None and noise[index + 1] > 0:
            further, last = clearness[index : index + 2].diff(), clearness[index - 1 : index + 1].diff()
            ahead = clean + (further / (2 * last)).to(clean) * (clean - before)
        kept = noise[index + 1] / noise[index]
        latents = kept.to(latents) * latents + (signal[index + 1] - signal[index] * kept).to(latents) * ahead
        before = clean
    return latents


def guided_within(
    guided: editing.Predict, alone: editing.Predict, schedule: Schedule, interval: tuple[float, float] | None
) -> Callable[[Tensor], editing.Predict]:
    """Guidance at noise levels within an interval, and elsewhere the caption's prediction alone, at half the cost
    (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Args:
        interval: Lowest and highest σ, the share of the noise in the mixture, in [0, 1]; None: guidance everywhere.
    """
    if interval is None:
        return lambda level: guided
    lowest, highest = interval
    return lambda level: guided if lowest <= schedule.mixture(level)[1].item() <= highest else alone
