"""Rectified flow with Euler's steps, for models that predict the velocity noise − clean.

A level is σ: z = (1−σ)·x + σ·ε (Liu et al. 2022, Lipman et al. 2022), from pure noise at σ = 1 to the clip at σ = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.errors import RecipeError, UserError
from rayvideo.schedules.base import Chain, part_of, per_clip

UNFOLLOWED = (
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""Settings of diffusers' schedulers that change the grid in other ways than the shift does."""


class Flow:
    """Euler on the grid of a diffusers scheduler for flows, with the shift applied once.

    The grid is that of Wan's own code and of `UniPCMultistepScheduler`: `steps` even levels from 1 down to just above
    1/1000, each shifted to shift·σ / (1 + (shift−1)·σ), then 0. `FlowMatchEulerDiscreteScheduler` shifts the low end of
    its grid a second time, so that its last step hardly moves and would carry hardly any gradient (docs/flow.md).

    Args:
        scheduler: A diffusers scheduler with `shift`, or with `use_flow_sigmas` and `flow_shift`, in its configuration.
        shift: How much of the chain is spent at high noise; the scheduler's if None.

    Raises:
        UserError: the scheduler is of another kind, or has settings that this grid does not follow.
        RecipeError: the shift is not above 0.
    """

    def __init__(self, scheduler: Any, shift: float | None = None) -> None:
        config, name = scheduler.config, type(scheduler).__name__
        key = "flow_shift" if config.get("use_flow_sigmas") else "shift"
        if key not in config or config.get("prediction_type", "flow_prediction") != "flow_prediction":
            raise UserError(
                f"the model's {name} is no scheduler of a flow; it needs a 'shift', or 'use_flow_sigmas' with "
                "prediction_type 'flow_prediction'"
            )
        if wrong := [setting for setting in UNFOLLOWED if config.get(setting)]:
            raise UserError(f"the model's {name} has {wrong[0]} {config[wrong[0]]!r}, which is not supported")
        if config.get("final_sigmas_type", "zero") != "zero":
            raise UserError(f"the model's {name} has final_sigmas_type {config['final_sigmas_type']!r}, not 'zero'")
        self.scheduler = scheduler
        self.shift: float = config[key] if shift is None else shift
        if self.shift <= 0:
            source = "model.shift" if shift is not None else f"model.shift is null, and {key} of the model's {name} is"
            raise RecipeError(f"{source} {self.shift}: allowed is any number above 0, such as 1 for an even grid")
        self._train_steps: int = config["num_train_timesteps"]

    def shifted(self, shift: float | None) -> Self:
        """The same flow with another shift; None leaves it as it is."""
        return self if shift is None else type(self)(self.scheduler, shift)

    @property
    def offset_noise(self) -> float:
        """0: flows are not trained with it."""
        return 0.0

    def chain(self, steps: int, strength: float = 1.0, size: tuple[int, ...] | None = None) -> Chain:
        """The last int(strength·steps) steps; timesteps are 1000·σ and no whole numbers."""
        run = part_of(steps, strength)
        even = np.linspace(1, 1 / self._train_steps, steps + 1)[:-1]
        levels = self._shifted(torch.from_numpy(even))[steps - run :]
        return Chain(levels * self._train_steps, torch.cat([levels, levels.new_zeros(1)]))

    def steps_from(self, steps: int, sigma: float) -> int:
        """How many of `steps` steps start at σ or below."""
        starts = self.chain(steps).levels[:-1]
        if run := int((starts <= sigma).sum()):
            return run
        least = math.ceil(starts[-1].item() * 1e4) / 1e4
        raise ValueError(f"none of {steps} steps starts at that noise or less; nearest allowed: {least:g}")

    def mixture(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """1 − σ and σ."""
        return 1 - level, level

    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """(1−σ)·clean + σ·noise (paper Eq. 5, for a flow)."""
        sigma = per_clip(level, clean)
        return sigma * noise + (1 - sigma) * clean

    def step(
        self, latents: Tensor, prediction: Tensor, level: Tensor, next_level: Tensor, eta: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Euler's step z + (σ'−σ)·v, or with η > 0 a step of the SDE that has the same marginals.

        That SDE, as Flow-GRPO has it (Liu et al. 2025, arXiv 2505.05470), runs σ down by

            dz = [v + g²/(2σ)·ε̂] dσ + g dw,   g = η·√(σ/(1−σ)),   ε̂ = z + (1−σ)·v

        because the score is −ε̂/σ. Flow-GRPO takes an Euler-Maruyama step of it, which is infinite at σ = 1, where its
        code puts another σ into g, and leaves more noise than the next level has. With the clean estimate
        x̂ = z − σ·v held for the step, as DDIM does, the SDE is solved exactly: z = (1−σ)·x̂ + σ·ε̂, and ε̂ alone moves,
        dε̂ = g²/(2σ²)·ε̂ dσ + (g/σ) dw, which keeps a variance of 1. The integral of g²/σ² is η² times the fall of
        log(σ/(1−σ)), so that

            z' = (1−σ')·x̂ + σ'·(q·ε̂ + √(1−q²)·noise),   q = [σ'(1−σ) / (σ(1−σ'))]^(η²/2)

        At σ = 1, q is 0: all noise is new. At σ' = 0 nothing is left to chance. For small steps it is Flow-GRPO's.
        """
        mean = latents + (next_level - level) * prediction
        if eta:
            noise = latents + (1 - level) * prediction
            mean = mean - next_level * (1 - self._kept(level, next_level, eta)) * noise
        return mean, self.deviation(level, next_level, eta)

    def deviation(self, level: Tensor, next_level: Tensor, eta: float) -> Tensor:
        """σ'·√(1−q²), with the q of `step`."""
        return next_level * (1 - self._kept(level, next_level, eta) ** 2) ** 0.5

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """z − σ·v."""
        return latents - level * prediction

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The velocity, noise − clean."""
        return noise - clean

    def random_levels(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Uniform among 1/1000, 2/1000, … 1, then shifted: the levels that diffusers' `FlowMatchEulerDiscreteScheduler`
        holds for training.
        """
        whole = torch.cat([torch.randint(self._train_steps, (1,), generator=generator) for generator in generators])
        levels = self._shifted((whole.double() + 1) / self._train_steps)
        return levels * self._train_steps, levels

    def _shifted(self, even: Tensor) -> Tensor:
        """Levels of an unshifted grid, in float64, to fp32 ones of the shifted grid."""
        return (self.shift * even / (1 + (self.shift - 1) * even)).float()

    def _kept(self, level: Tensor, next_level: Tensor, eta: float) -> Tensor:
        """q of `step`: how much of the old noise is in the next level's."""
        return (next_level * (1 - level) / (level * (1 - next_level))) ** (eta**2 / 2)
