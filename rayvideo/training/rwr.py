"""Reward-weighted regression (Lee et al. 2023): learn to denoise samples, the better ones more."""

from __future__ import annotations

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.data.table import Batch
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.seeding import generator_for
from rayvideo.training.meters import Clock
from rayvideo.training.objective import rwr_loss, rwr_weights
from rayvideo.training.sampling import Sampled, Sampler


class Rwr(Sampler):
    """Samples with η = 0, or takes the data's clips; each update learns all of them at noise levels of their own."""

    def __init__(self, recipe: Recipe, model: VideoModel, unconditional: Tensor, clock: Clock) -> None:
        super().__init__(recipe, model, unconditional, clock)
        self.updates = recipe.training.rwr.updates

    def weigh(self, advantages: Tensor) -> Tensor:
        return rwr_weights(advantages, self._recipe.training.rwr.temperature)

    def loss(self, sampled: Sampled, weights: Tensor, step: int, number: int) -> Tensor:
        model, latents = self._model, sampled.path[-1]
        own = [generator_for(self._recipe.seed, "rwr", step, sampled.first + i, number) for i in range(len(latents))]
        levels = len(model.scheduler.alphas_cumprod)
        timesteps = torch.cat([torch.randint(levels, (1,), generator=one) for one in own]).to(model.device)
        noise = editing.normal(latents.shape, own, model.device)
        noisy = editing.corrupt(latents, noise, model.scheduler, timesteps)
        predicted = model.predict(noisy, timesteps, sampled.clips.embeddings.to(model.device))
        return rwr_loss((predicted - noise).square().flatten(1).mean(1), weights)

    def _sample(self, clips: Batch, own: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        if self._recipe.training.rwr.samples == "data":
            latents = self._encoded(clips, own)
        else:
            latents = self._denoise(clips, self._pure_noise(own), self._grid, 0)
        return latents[None], latents.new_empty(0, len(latents))
