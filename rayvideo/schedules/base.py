"""What the editing chain asks of a model family's noise path, whatever the model predicts.

A *level* says how noisy latents are, in the path's own number: ᾱ for diffusion, σ for a flow. Levels are fp32 tensors
on the CPU, [] or one per clip [B]; latents are [B, C, F, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Chain(NamedTuple):
    """The steps from a noisy clip to a finished one."""

    timesteps: Tensor
    """What the denoiser is told before each of the D steps, [D], descending."""
    levels: Tensor
    """Noise level before each step, and after the last one, [D + 1]."""

    @property
    def steps(self) -> int:
        """D."""
        return len(self.timesteps)

    def last(self, steps: int) -> Chain:
        """The chain's last `steps` steps."""
        first = self.steps - steps
        return Chain(self.timesteps[first:], self.levels[first:])

    def first(self, steps: int) -> Chain:
        """The chain's first `steps` steps."""
        return Chain(self.timesteps[:steps], self.levels[: steps + 1])

    def thinned(self, steps: int) -> Chain:
        """Between the same ends in `steps` longer steps, each from one of the chain's levels to another.

        Raises:
            ValueError: it has not as many.
        """
        if not min(1, self.steps) <= steps <= self.steps:
            raise ValueError(f"{steps} steps in place of {self.steps}; allowed: {min(1, self.steps)} to {self.steps}")
        kept = torch.linspace(0, self.steps, steps + 1, dtype=torch.float64).round().long()
        return Chain(self.timesteps[kept[:-1]], self.levels[kept])


class Schedule(Protocol):
    """A family's noise path: how clip and noise mix, which grid is walked, and what a prediction means."""

    @property
    def offset_noise(self) -> float:
        """Strength of `editing.offset_noise` unless the recipe says: what such models are used to."""

    def shifted(self, shift: float | None) -> Schedule:
        """This path with the recipe's `model.shift`, None for the checkpoint's.

        Raises:
            RecipeError: it has no shift, or none that is allowed.
        """

    def chain(self, steps: int, strength: float = 1.0, size: tuple[int, ...] | None = None) -> Chain:
        """The last int(strength·steps) steps of the sampler's grid of `steps` (τ and D of the paper).

        Args:
            size: Shape (C, F, h, w) of a clip's latents, for paths that depend on it.

        Raises:
            ValueError: no step is left to run, or more than the whole grid is asked for.
        """

    def steps_from(self, steps: int, sigma: float) -> int:
        """How many of a whole grid's `steps` steps start at noise level σ or below (the recipe's `start_sigma`).

        Raises:
            ValueError: none does, or the path's levels are no σ.
        """

    def mixture(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at a level, of α·clean + σ·noise, in the level's shape."""

    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Latents at a noise level [] or [B] (paper Eq. 5)."""

    def step(
        self, latents: Tensor, prediction: Tensor, level: Tensor, next_level: Tensor, eta: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [] of a step from one level [] to the next; with η = 0 the step is its mean."""

    def deviation(self, level: Tensor, next_level: Tensor, eta: float) -> Tensor:
        """The standard deviation [] that `step` gives: how much a step leaves to chance."""

    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """The finished latents that a prediction implies."""

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the denoiser should have predicted for `corrupt(clean, noise, level)`."""

    def random_levels(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Timesteps and levels [B] that training draws from, one by each generator."""


def part_of(steps: int, strength: float) -> int:
    """How many steps of a whole chain a strength runs: int(strength·steps).

    Raises:
        ValueError: none, or more than all.
    """
    run = int(strength * steps)
    if not 1 <= run <= steps:
        nearest = f"nearest allowed: {least_strength(steps, 1) if run < 1 else 1}"
        raise ValueError(f"strength {strength} of {steps} steps runs {run} steps; allowed: 1 to {steps}; {nearest}")
    return run


def least_strength(steps: int, run: int) -> float:
    """The least strength, of four digits, that runs `run` of `steps` steps."""
    rounded = round(run / steps, 4)
    return rounded if int(rounded * steps) >= run else round(rounded + 1e-4, 4)


def per_clip(level: Tensor, like: Tensor) -> Tensor:
    """A level [] or [B] in the format of latents [B, …], ready to be multiplied with them."""
    return level.to(like).reshape(-1, *[1] * (like.ndim - 1))
