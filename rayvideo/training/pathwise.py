"""What objectives share that learn from the judges' gradients, through the pixels and the chain to the adapter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from rayvideo import editing
from rayvideo.seeding import generator_for
from rayvideo.training.objective import Judged, Loss, Made, Objective, OptionsT

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


def reward_loss(rewards: Tensor) -> Tensor:
    """Mean of 1 - R over videos [B] (paper Eq. 9 up to the constant: the gradient is that of -R).

    Also DRaFT's (Clark et al. 2024), whose rewards are those of clips made from pure noise.
    """
    return (1 - rewards).mean()


class Pathwise(Objective[OptionsT]):
    """One update a step: the mean of 1 − R over all clips, a backward pass for each micro-batch."""

    needs_gradient = True

    @classmethod
    def most_rollout_steps(cls, recipe: Recipe, run: int) -> int:
        """Those before the last K, or before the first that `editing.grad_on` names.

        Raises:
            ValueError: it names one that the chain does not have.
        """
        chosen = recipe.editing
        try:
            first = min(editing.steps_with_gradient(chosen.grad_on, chosen.grad_steps, run), default=run)
        except ValueError as error:
            raise ValueError(f"editing.grad_on: {error}") from None
        return run if chosen.grad_on == "random" else first

    @abstractmethod
    def make(self, clips: Batch, step: int, first: int) -> Made:
        """Make clips whose pixels carry a graph."""

    def updates(self, step: int, judged: Iterator[Judged]) -> Iterator[Iterator[Loss]]:
        """The loss of each micro-batch as soon as it is back (Eq. 9)."""
        yield (Loss(reward_loss(one.rewards), one.made.clips) for one in judged)

    def _steps_with_gradient(self, step: int) -> frozenset[int]:
        """Those of the chain; random ones are the same for all clips of an optimizer step, and on all workers."""
        chosen = self._recipe.editing
        generator = generator_for(self._recipe.seed, "grad_on", step)
        return editing.steps_with_gradient(chosen.grad_on, chosen.grad_steps, self._chain.steps, generator)
