"""InstructVideo (Yuan et al., CVPR 2024): clips of the data are edited, and the judges' gradient says how better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.sections import Section
from rayvideo.training.objective import Made
from rayvideo.training.pathwise import Pathwise

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


class InstructVideo(Pathwise[Section]):
    """Corrupts the clips of the data to level τ and denoises them, the last K steps with a gradient."""

    reuses = True

    @classmethod
    def strength(cls, recipe: Recipe) -> float:
        """τ."""
        return recipe.editing.strength

    @classmethod
    def start_sigma(cls, recipe: Recipe) -> float | None:
        """The same in σ."""
        return recipe.editing.start_sigma

    def make(self, clips: Batch, step: int, first: int) -> Made:
        """Edit the clips (Eq. 3-5)."""
        generators = self._generators("edit", clips, step, first)
        with self._clock("rollout"):
            latents = self._encoded(clips, generators)
            chosen = self._recipe.editing.offset_noise
            shared = self._model.schedule.offset_noise if chosen is None else chosen
            noise = editing.offset_noise(latents, shared, generators)
            noisy = self._model.schedule.corrupt(latents, noise, self._chain.levels[0])
            grad_on, times = self._steps_with_gradient(step), self._recipe.editing.reuse
            first = min(grad_on)
            rolled = self._roll_out(clips, noisy, self._chain.first(first))
            drawn = self._draw_frames(generators)
            if times > 1:
                rolled = torch.cat([rolled, *self._renoised(clips, rolled, first, times - 1, generators)])
                drawn = torch.cat([drawn, *(self._draw_frames(generators) for _ in range(times - 1))])
                clips = clips.repeated(times)
            edited = self._finish(clips, rolled, self._chain, grad_on)
        return self._show(edited, clips, drawn, step)

    def _renoised(
        self, clips: Batch, rolled: Tensor, first: int, times: int, generators: Sequence[torch.Generator]
    ) -> list[Tensor]:
        """The finished clips with new noise, as noisy as step `first` takes them, so many times."""
        level, rest = self._chain.levels[first], self._chain.last(self._chain.steps - first)
        finished = self._roll_out(clips, rolled, rest)
        noises = [editing.normal(finished.shape, generators, finished.device) for _ in range(times)]
        return [self._model.schedule.corrupt(finished, noise.to(finished), level) for noise in noises]
