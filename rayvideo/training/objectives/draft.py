"""DRaFT (Clark et al. 2024): clips from pure noise, with a gradient through the end of the chain only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from rayvideo import editing
from rayvideo.sections import Section
from rayvideo.training.objective import Made
from rayvideo.training.pathwise import Pathwise

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


class DraftOptions(Section):
    """Objective draft: the judge's gradient through the last steps of generating from pure noise (DRaFT)."""

    noisings: int = Field(
        0,
        ge=0,
        description="0: DRaFT-K, K = editing.grad_steps. n > 0: DRaFT-LV, the mean gradient of n last steps, each from "
        "the finished sample with new noise; n graphs are alive at once.",
    )


class Draft(Pathwise[DraftOptions]):
    """Generates for the captions of the data; the clips themselves are not used.

    DRaFT-K differentiates the last K steps. DRaFT-LV adds noise to the finished sample `noisings` times, up to the last
    step's level, and differentiates each time the step that removes it: the returned batch is that many times as long.
    """

    Options = DraftOptions

    @classmethod
    def check(cls, recipe: Recipe, options: DraftOptions) -> None:
        """Also refuse other gradient steps than the last beside `noisings`."""
        chosen = recipe.editing
        if options.noisings and chosen.grad_steps > 1:
            raise ValueError(
                f"training.draft.noisings {options.noisings} differentiates the last step alone; set "
                f"editing.grad_steps {chosen.grad_steps} to 1, or noisings to 0"
            )
        if options.noisings and chosen.grad_on != "last":
            raise ValueError(
                f"training.draft.noisings {options.noisings} differentiates the last step alone; set "
                f"editing.grad_on {chosen.grad_on!r} to 'last', or noisings to 0"
            )
        super().check(recipe, options)

    def make(self, clips: Batch, step: int, first: int) -> Made:
        """Generate clips."""
        noisings = self._options.noisings
        generators = self._generators("draft", clips, step, first)
        with self._clock("rollout"):
            grad_on = frozenset[int]() if noisings else self._steps_with_gradient(step)
            latents = self._denoise(clips, self._pure_noise(generators), self._chain, grad_on)
            if noisings:
                last = self._chain.last(1)
                noise = torch.cat([editing.normal(latents.shape, generators, latents.device) for _ in range(noisings)])
                noisy = self._model.schedule.corrupt(latents.repeat(noisings, 1, 1, 1, 1), noise, last.levels[0])
                clips = clips.repeated(noisings)
                latents = self._denoise(clips, noisy, last, frozenset({0}))
        drawn = torch.cat([self._draw_frames(generators) for _ in range(noisings or 1)])
        return self._show(latents, clips, drawn, step)
