"""DDPO (Black et al. 2024): the denoising chain as a policy; steps become likelier the more they earned."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.data.table import Batch
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.training.meters import Clock
from rayvideo.training.objective import ddpo_loss
from rayvideo.training.sampling import Sampled, Sampler


class Ddpo(Sampler):
    """Samples with η > 0 and keeps the way; each pass goes over one step of it again, with a gradient.

    The gradient of a step's log-probability has a variance of the order 1/σ², and the less noise, the less a step can
    do for the reward: `ddpo.learned_steps` leaves out the steps of least noise.
    """

    def __init__(self, recipe: Recipe, model: VideoModel, unconditional: Tensor, clock: Clock) -> None:
        super().__init__(recipe, model, unconditional, clock)
        options = recipe.training.ddpo
        self._levels = editing.levels(model.scheduler, self._grid)
        sigmas = [editing.step_noise(now, then, options.eta).item() for now, then in pairwise(self._levels)]
        # A schedule that ends on ᾱ = 1 leaves nothing to chance in its last step, which then has no probability.
        random = [number for number, sigma in enumerate(sigmas) if sigma > 0]
        self.noisiest = {number: sigmas[number] for number in sorted(random, key=lambda n: sigmas[n], reverse=True)}
        """Step of the chain -> its σ, those of most noise first."""
        self._learned = sorted(list(self.noisiest)[: options.learned_steps])
        self.passes = len(self._learned)
        self.updates = options.updates

    def weigh(self, advantages: Tensor) -> Tensor:
        limit = self._recipe.training.ddpo.max_advantage
        return advantages.clamp(-limit, limit)

    def loss(self, sampled: Sampled, weights: Tensor, step: int, number: int) -> Tensor:
        number %= self.passes  # each update goes over all learned steps
        taken = self._learned[number]
        mean, sigma = self._transition(self._predict(sampled.clips), sampled.path[taken], taken)
        log_probs = log_probability(sampled.path[taken + 1], mean, sigma)
        return ddpo_loss(log_probs, sampled.log_probs[number], weights, self._recipe.training.ddpo.clip_range)

    def _sample(self, clips: Batch, own: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        predict = self._predict(clips)
        path, log_probs = [self._pure_noise(own)], []
        for number in range(len(self._grid)):
            mean, sigma = self._transition(predict, path[-1], number)
            path.append(mean + sigma * editing.normal(mean.shape, own, mean.device))
            if number in self._learned:
                log_probs.append(log_probability(path[-1], mean, sigma))
        return torch.stack(path), torch.stack(log_probs)

    def _transition(self, predict: editing.Predict, latents: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of step `number` of the chain."""
        noise = predict(latents, self._grid[number].to(latents.device)).to(latents.dtype)
        now, then = self._levels[number : number + 2]
        return editing.ddim_step(latents, noise, now, then, self._recipe.training.ddpo.eta)


def log_probability(values: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log-density [B] of N(mean, σ²), up to a constant, as a mean over a clip's numbers.

    DDPO's code takes the mean too; its clip range is meant for it.
    """
    return -((values - mean).square() / (2 * sigma**2)).flatten(1).mean(1)
