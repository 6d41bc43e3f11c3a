"""InstructVideo (Yuan et al., CVPR 2024): clips of the data are edited, and the judges' gradient says how better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvideo import editing
from rayvideo.sections import Section
from rayvideo.training.objective import Made
from rayvideo.training.pathwise import Pathwise

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


class InstructVideo(Pathwise[Section]):
    """Corrupts the clips of the data to level τ and denoises them, the last K steps with a gradient."""

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
            edited = self._denoise(clips, noisy, self._chain, self._steps_with_gradient(step))
        return self._show(edited, clips, self._draw_frames(generators), step)
