"""Variance-preserving diffusion with DDIM's steps, for models that predict the noise ε or the velocity v.

A level is ᾱ: z = √ᾱ·x + √(1−ᾱ)·ε. Equations of Song et al. 2021 (DDIM) and Salimans and Ho 2022 (v).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.errors import RecipeError
from rayvideo.schedules.base import Chain, part_of, per_clip


@dataclass(frozen=True)
class Diffusion:
    """DDIM on the noise levels of a diffusers scheduler, which none of these functions changes."""

    scheduler: Any
    """Anything that carries the attributes of diffusers' `DDIMScheduler`."""
    predicts: Literal["epsilon", "v_prediction"] = "epsilon"

    @property
    def offset_noise(self) -> float:
        """What the release adds."""
        return 0.1

    def shifted(self, shift: float | None) -> Self:
        """Itself: only a flow has a shift."""
        if shift is not None:
            raise RecipeError(f"model.shift {shift}: this model is a diffusion, which has no shift; set it to null")
        return self

    def steps_from(self, steps: int, sigma: float) -> int:
        """Not known: levels are ᾱ."""
        raise ValueError("this model is a diffusion, which has no sigma; set it to null, and editing.strength instead")

    def chain(self, steps: int, strength: float = 1.0, size: tuple[int, ...] | None = None) -> Chain:
        """The last int(strength·steps) timesteps; with the reference's schedule, 20 and 0.6: 551, 501, …, 51, 1.

        The last step lands on the schedule's final ᾱ, which for the reference's is ᾱ_0 = 0.99915 and not 1.
        """
        run = part_of(steps, strength)
        grid = copy.copy(self.scheduler)  # set_timesteps only assigns attributes; the scheduler stays as it is
        grid.set_timesteps(steps)
        return self.over(grid.timesteps[steps - run :].long())

    def over(self, timesteps: Tensor) -> Chain:
        """The chain over given timesteps [D], descending."""
        levels = self.level(timesteps)
        final = torch.as_tensor(self.scheduler.final_alpha_cumprod).to(levels).reshape(1)
        return Chain(timesteps, torch.cat([levels, final]))

    def level(self, timestep: int | Tensor) -> Tensor:
        """ᾱ at a timestep, [] or [B], in the format that the scheduler counts in."""
        return torch.as_tensor(self.scheduler.alphas_cumprod[torch.as_tensor(timestep).cpu()])

    def mixture(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1−ᾱ)."""
        return level.sqrt(), (1 - level).sqrt()

    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """√ᾱ·clean + √(1−ᾱ)·noise (paper Eq. 5)."""
        alpha = per_clip(level, clean)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def step(
        self, latents: Tensor, prediction: Tensor, level: Tensor, next_level: Tensor, eta: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """DDIM's step (Eq. 12 and 16): estimate the finished latents, then add back the next level's noise."""
        sigma = self.deviation(level, next_level, eta)
        noise = self._noise(latents, prediction, level)
        clean = self.clean(latents, prediction, level)
        return next_level**0.5 * clean + (1 - next_level - sigma**2) ** 0.5 * noise, sigma

    def deviation(self, level: Tensor, next_level: Tensor, eta: float) -> Tensor:
        """η·√((1−ᾱ')/(1−ᾱ)·(1−ᾱ/ᾱ')) (Eq. 16)."""
        return eta * ((1 - next_level) / (1 - level) * (1 - level / next_level)) ** 0.5

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """(z − √(1−ᾱ)·ε) / √ᾱ; from v it is √ᾱ·z − √(1−ᾱ)·v, which ᾱ = 0 allows too."""
        if self.predicts == "v_prediction":
            return level**0.5 * latents - (1 - level) ** 0.5 * prediction
        return (latents - (1 - level) ** 0.5 * prediction) / level**0.5

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The noise; or v = √ᾱ·noise − √(1−ᾱ)·clean."""
        if self.predicts == "epsilon":
            return noise
        alpha = per_clip(level, clean)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    def random_levels(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Uniform among the schedule's timesteps."""
        count = len(self.scheduler.alphas_cumprod)
        timesteps = torch.cat([torch.randint(count, (1,), generator=generator) for generator in generators])
        return timesteps, self.level(timesteps)

    def _noise(self, latents: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """The noise that a prediction implies."""
        if self.predicts == "epsilon":
            return prediction
        return level**0.5 * prediction + (1 - level) ** 0.5 * latents
