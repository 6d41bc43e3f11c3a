"""Reward-weighted regression (Lee et al. 2023): learn to denoise samples, the better ones more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayvideo import editing
from rayvideo.sections import Positive, Section
from rayvideo.seeding import generator_for
from rayvideo.training.sampled import Sample, Sampled

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


class RwrOptions(Section):
    """Objective rwr: regression to samples, weighted by exp(reward / temperature)."""

    samples: Literal["generated", "data"] = Field(
        "generated",
        description="What is judged and learned: generated: what the model makes of the captions now. data: the clips "
        "of data, where their quality varies; nothing is generated then, so that a step is much cheaper.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="In standard deviations of the global batch's rewards; lower trusts the best samples more.",
    )
    updates: Positive = Field(4, description="Optimizer updates on the same samples, each at noise levels of its own.")


def rwr_weights(advantages: Tensor, temperature: float) -> Tensor:
    """exp(advantage / β) of samples [N], normalised to a mean of 1 (Lee et al. 2023).

    Advantages are `standardised` rewards, so that β does not depend on the judge's scale.
    """
    return torch.softmax(advantages / temperature, dim=0) * len(advantages)


def rwr_loss(errors: Tensor, weights: Tensor) -> Tensor:
    """Reward-weighted regression: mean of weight·(prediction error), both [B]."""
    return (weights * errors).mean()


class Rwr(Sampled[RwrOptions]):
    """Samples with η = 0, or takes the data's clips; each update learns all of them at noise levels of their own."""

    Options = RwrOptions

    def __init__(self, recipe: Recipe, options: RwrOptions, *rest: Any) -> None:
        super().__init__(recipe, options, *rest)
        self.update_count = options.updates

    @classmethod
    def check(cls, recipe: Recipe, options: RwrOptions) -> None:
        """Also refuse to compare a clip of the data with itself."""
        super().check(recipe, options)
        each = recipe.training.samples_per_caption
        if options.samples == "data" and each > 1:
            raise ValueError(
                "training.samples_per_caption: with training.rwr.samples 'data' a step would have the same clip "
                f"{each} times; set it to 1"
            )

    def weigh(self, advantages: Tensor) -> Tensor:
        return rwr_weights(advantages, self._options.temperature)

    def loss(self, sample: Sample, weights: Tensor, step: int, number: int) -> Tensor:
        model, latents, seed = self._model, sample.path[-1], self._recipe.seed
        generators = [generator_for(seed, "rwr", step, sample.first + i, number) for i in range(len(latents))]
        timesteps, levels = model.schedule.random_levels(generators)
        noise = editing.normal(latents.shape, generators, model.device)
        noisy = model.schedule.corrupt(latents, noise, levels)
        predicted = model.predict(noisy, timesteps.to(model.device), sample.clips.embeddings.to(model.device))
        errors = (predicted - model.schedule.target(latents, noise, levels)).square().flatten(1).mean(1)
        return rwr_loss(errors, weights)

    def _sample(self, clips: Batch, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        if self._options.samples == "data":
            latents = self._encoded(clips, generators)
        else:
            latents = self._denoise(clips, self._pure_noise(generators), self._chain)
        return latents[None], latents.new_empty(0, len(latents))
