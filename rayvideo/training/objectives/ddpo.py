"""DDPO (Black et al. 2024): the denoising chain as a policy; steps become likelier the more they earned."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from rayvideo import editing
from rayvideo.sections import Positive, Section
from rayvideo.training.sampled import Sample, Sampled

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


class DdpoOptions(Section):
    """Objective ddpo: policy gradient on the chain from pure noise, with clipped importance ratios (DDPO-IS)."""

    eta: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Randomness of the steps that samples are drawn with: of DDIM, or of a flow (docs/flow.md).",
    )
    learned_steps: Positive | None = Field(
        None,
        description="Steps of the chain that are learned, those of most noise first; null: all. Steps of little noise "
        "make the gradient noisy and hardly change the reward (docs/objectives.md).",
    )
    clip_range: float = Field(1e-4, gt=0, description="A step's importance ratio is clipped to 1 ± this.")
    max_advantage: float = Field(5.0, gt=0, description="Advantages, in standard deviations, are clipped to ± this.")
    updates: Positive = Field(
        2, description="Optimizer updates on the same samples; the ratio differs from 1 after one."
    )


def ddpo_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Clipped policy gradient of one chain step of samples [B] (DDPO-IS, Black et al. 2024).

    The ratio of the probabilities now and when sampled, clipped to 1 ± `clip_range`; of both objectives the worse one.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(advantages * ratio, advantages * clipped).mean()


def log_probability(values: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log-density [B] of N(mean, σ²), up to a constant, as a mean over a clip's numbers.

    DDPO's code takes the mean too; its clip range is meant for it.
    """
    return -((values - mean).square() / (2 * sigma**2)).flatten(1).mean(1)


class Ddpo(Sampled[DdpoOptions]):
    """Samples with η > 0 and keeps the way; each pass goes over one step of it again, with a gradient.

    The gradient of a step's log-probability has a variance of the order 1/σ², and the less noise, the less a step can
    do for the reward: `ddpo.learned_steps` leaves out the steps of least noise.
    """

    Options = DdpoOptions
    rolls_out = False
    patience = 10  # samples that are rewarded alike say nothing, which may happen now and then

    def __init__(self, recipe: Recipe, options: DdpoOptions, *rest: Any) -> None:
        super().__init__(recipe, options, *rest)
        deviation = self._model.schedule.deviation
        sigmas = [deviation(now, then, options.eta).item() for now, then in pairwise(self._chain.levels)]
        # A schedule that ends without noise leaves nothing to chance in its last step, which then has no probability.
        random = [number for number, sigma in enumerate(sigmas) if sigma > 0]
        self.noisiest = {number: sigmas[number] for number in sorted(random, key=lambda n: sigmas[n], reverse=True)}
        """Step of the chain -> its σ, those of most noise first."""
        self._learned = sorted(list(self.noisiest)[: options.learned_steps])
        self.passes = len(self._learned)
        self.update_count = options.updates

    @classmethod
    def check(cls, recipe: Recipe, options: DdpoOptions) -> None:
        """Also refuse to learn more steps than there are."""
        if (options.learned_steps or 0) > recipe.editing.steps:
            raise ValueError(
                f"training.ddpo.learned_steps {options.learned_steps} is more than the chain's "
                f"editing.steps {recipe.editing.steps}; lower it, or set it to null for all"
            )
        super().check(recipe, options)

    def weigh(self, advantages: Tensor) -> Tensor:
        limit = self._options.max_advantage
        return advantages.clamp(-limit, limit)

    def loss(self, sample: Sample, weights: Tensor, step: int, number: int) -> Tensor:
        number %= self.passes  # each update goes over all learned steps
        taken = self._learned[number]
        mean, sigma = self._transition(self._predict(sample.clips), sample.path[taken], taken)
        log_probs = log_probability(sample.path[taken + 1], mean, sigma)
        return ddpo_loss(log_probs, sample.log_probs[number], weights, self._options.clip_range)

    def _sample(self, clips: Batch, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        predict = self._predict(clips)
        path, log_probs = [self._pure_noise(generators)], []
        for number in range(self._chain.steps):
            mean, sigma = self._transition(predict, path[-1], number)
            path.append(mean + sigma * editing.normal(mean.shape, generators, mean.device))
            if number in self._learned:
                log_probs.append(log_probability(path[-1], mean, sigma))
        return torch.stack(path), torch.stack(log_probs)

    def _transition(self, predict: editing.Predict, latents: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of step `number` of the chain."""
        timesteps, levels = self._chain
        predicted = predict(latents, timesteps[number].to(latents.device)).to(latents.dtype)
        return self._model.schedule.step(latents, predicted, levels[number], levels[number + 1], self._options.eta)
