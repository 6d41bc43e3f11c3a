"""What an objective is: it makes clips, and turns what the judges say of them into losses.

An objective is a file in `objectives/`, or a class of the user's. The trainer knows this contract and no objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.errors import RecipeError
from rayvideo.models.base import VideoModel
from rayvideo.models.decoding import frame_by_frame
from rayvideo.rewards.pixels import clamp_pixels
from rayvideo.rewards.temporal import sample_segments
from rayvideo.rollout import guided_within, roll_out
from rayvideo.schedules import Chain, Schedule
from rayvideo.schedules.base import least_strength
from rayvideo.sections import Section
from rayvideo.seeding import generator_for
from rayvideo.training.guards import check_finite
from rayvideo.training.meters import Clock

if TYPE_CHECKING:  # a recipe is made of the objectives' options, and clips come from tables that need Ray
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe

ROLLOUT = ("rollout_solver", "rollout_steps", "rollout_cache", "guidance_interval")
"""Options of `editing` for steps without a gradient."""

OptionsT = TypeVar("OptionsT", bound=Section)


@dataclass
class Made:
    """A micro-batch of clips that the model made; their pixels carry the graph back to the adapter, if there is one."""

    clips: Batch
    drawn: Tensor
    """The frame that judges of frames see of each segment, [B, S]."""
    shown: Tensor
    """The frames that were decoded, among them those drawn, [B, U], ascending."""
    pixels: Tensor
    """The shown frames, clamped to [0, 1]: [B, U, 3, H, W]."""
    saturation: float
    """Share of pixel values that had to be clamped."""


class Judged(NamedTuple):
    """Clips that are back from the judges."""

    made: Made
    rewards: Tensor
    """[B]; differentiable by the clips' pixels, if the objective needs that."""


class Loss(NamedTuple):
    """What one backward pass starts from."""

    value: Tensor
    """[]"""
    clips: Batch
    """The clips that it comes from."""


class Objective(ABC, Generic[OptionsT]):
    """How the adapter learns. Subclasses say how clips are made, and what is minimised.

    Args:
        options: What `options_of` says.
        model: With denoiser (or the engine around it) and VAE.
        unconditional: Embedding [1, L, C] of the prompt that guidance leads away from.
        clock: Gets the phases "rollout", "decode" and "backward".
        shown: The frames [B, U] to decode for judges of which some see the frames drawn [B, S]; see `ClipReward.shown`.
    """

    Options: ClassVar[type[Section]] = Section
    """Its section of the recipe, `training.<name of its file>`."""
    needs_gradient: ClassVar[bool]
    """Whether the judges must be differentiable."""
    compares_samples: ClassVar[bool] = False
    """Whether it learns from how a step's samples differ in reward, so that there must be several."""
    reuses: ClassVar[bool] = False
    """Whether it knows `editing.reuse`."""
    rolls_out: ClassVar[bool] = True
    """Whether it has steps without a gradient that may be made otherwise, by `editing.rollout_solver` and its like."""
    patience: ClassVar[int] = 1
    """Updates within which some of the adapter must have moved."""
    passes: int = 1
    """Backward passes per micro-batch and update; the engine averages over them."""
    update_count: int = 1
    """Optimizer updates on the same clips."""

    def __init__(
        self,
        recipe: Recipe,
        options: OptionsT,
        model: VideoModel,
        unconditional: Tensor,
        clock: Clock,
        shown: Callable[[Tensor], Tensor],
    ) -> None:
        self._recipe = recipe
        self._options = options
        self._model = model
        self._unconditional = unconditional
        self._clock = clock
        self._shown = shown
        self._chain = self.chain(recipe, model.schedule)

    @classmethod
    def strength(cls, recipe: Recipe) -> float:
        """Share of the chain that is run, unless `start_sigma` says where it starts."""
        return 1.0

    @classmethod
    def start_sigma(cls, recipe: Recipe) -> float | None:
        """The most noise σ that a step may start from; None: `strength` decides."""
        return None

    @classmethod
    def chain(cls, recipe: Recipe, schedule: Schedule) -> Chain:
        """The steps that are run. Of two denoisers those that none of them asks need not be there.

        Raises:
            RecipeError: `start_sigma` leaves too few, or is nothing that this schedule knows.
        """
        steps, sigma = recipe.editing.steps, cls.start_sigma(recipe)
        if sigma is None:
            return schedule.chain(steps, cls.strength(recipe))
        try:
            run = schedule.steps_from(steps, sigma)
            cls.check_steps(recipe, run)
        except ValueError as error:
            raise RecipeError(f"editing.start_sigma {sigma}: {error}") from None
        return schedule.chain(steps).last(run)

    @classmethod
    def check(cls, recipe: Recipe, options: OptionsT) -> None:
        """Refuse options that do not fit this objective, without loading anything.

        Raises:
            ValueError: naming the key, what it is, and what is allowed.
        """
        for key in () if cls.rolls_out else ROLLOUT:
            _require_default(recipe, key)
        if not cls.reuses:
            _require_default(recipe, "reuse")
        if cls.start_sigma(recipe) is not None:
            return  # how many steps that leaves is the schedule's to say: see `chain`
        chosen, strength = recipe.editing, cls.strength(recipe)
        run, needed = int(strength * chosen.steps), chosen.grad_steps
        if run < needed:
            raised = f"strength to {least_strength(chosen.steps, needed):g}" if needed <= chosen.steps else "steps"
            raise ValueError(
                f"editing.strength {strength} x editing.steps {chosen.steps} runs {run} steps, fewer than "
                f"editing.grad_steps {needed}; raise {raised}, or lower grad_steps"
            )
        cls.check_steps(recipe, run)

    @classmethod
    def check_steps(cls, recipe: Recipe, run: int) -> None:
        """Refuse gradient steps, and steps before them, that a chain of `run` steps does not have.

        Raises:
            ValueError: naming the key.
        """
        if run < recipe.editing.grad_steps:
            raise ValueError(f"the chain has {run} steps, fewer than editing.grad_steps {recipe.editing.grad_steps}")
        wanted, most = recipe.editing.rollout_steps, cls.most_rollout_steps(recipe, run)
        if wanted is not None and wanted > most:
            raise ValueError(
                f"editing.rollout_steps {wanted}: {most} of the chain's {run} steps come before the first one with a "
                "gradient; allowed: up to that, or null"
            )

    @classmethod
    def most_rollout_steps(cls, recipe: Recipe, run: int) -> int:
        """How many of a chain of `run` steps come before the first one with a gradient, at most."""
        return run

    @abstractmethod
    def make(self, clips: Batch, step: int, first: int) -> Made:
        """Make clips for positions `first`, `first` + 1, … of the global batch of optimizer step `step`."""

    @abstractmethod
    def updates(self, step: int, judged: Iterator[Judged]) -> Iterator[Iterator[Loss]]:
        """For each optimizer update of a step, the losses whose gradients it adds up.

        Args:
            judged: This worker's micro-batches, in their order. Without `needs_gradient` all of them are made before
                the first one comes; else one at a time, so that few graphs are alive.
        """

    def _generators(self, what: str, clips: Batch, step: int, first: int) -> list[torch.Generator]:
        """One generator per clip, by its place in the step: the worker that holds it makes no difference."""
        return [generator_for(self._recipe.seed, what, step, first + i) for i in range(len(clips.ids))]

    def _pure_noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        data, model = self._recipe.data, self._model
        shape = model.latent_shape(data.frames, data.height, data.width)
        return editing.normal((len(generators), *shape), generators, model.device)

    def _encoded(self, clips: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents of the clips of the data, drawn from their posteriors."""
        device = self._model.device
        return self._model.posterior(clips.mean.to(device), clips.logvar.to(device)).sample(generators)

    def _predict(self, clips: Batch) -> editing.Predict:
        """The guided prediction for the clips' captions."""
        scale, apart = self._recipe.editing.guidance, self._recipe.model.checkpointing == "clips"
        return self._model.guided(clips.embeddings, self._unconditional, scale, apart=apart)

    def _denoise(self, clips: Batch, noisy: Tensor, chain: Chain, grad_on: frozenset[int] = frozenset()) -> Tensor:
        """The chain (Eq. 3, 4) with a gradient through the predictions of the steps `grad_on`, counted from 0."""
        first = min(grad_on, default=chain.steps)
        return self._finish(clips, self._roll_out(clips, noisy, chain.first(first)), chain, grad_on)

    def _roll_out(self, clips: Batch, noisy: Tensor, chain: Chain) -> Tensor:
        """Steps without a gradient, as `editing.rollout_solver` and its like say."""
        chosen = self._recipe.editing
        alone = self._model.guided(clips.embeddings, self._unconditional, 1)
        predict_at = guided_within(self._predict(clips), alone, self._model.schedule, chosen.guidance_interval)
        steps = None if chosen.rollout_steps is None else min(chosen.rollout_steps, chain.steps)
        threshold = chosen.rollout_cache
        with nullcontext() if threshold is None else self._model.cached(threshold):
            return roll_out(predict_at, noisy, self._model.schedule, chain, chosen.rollout_solver, steps)

    def _finish(self, clips: Batch, latents: Tensor, chain: Chain, grad_on: frozenset[int]) -> Tensor:
        """The steps of a chain from the first of `grad_on` on; latents are at that one's level."""
        first = min(grad_on, default=chain.steps)
        return editing.run_chain(
            self._predict(clips),
            latents,
            self._model.schedule,
            chain.last(chain.steps - first),
            grad_on=frozenset(number - first for number in grad_on),
            detach_input=self._recipe.editing.detach_input,
            checkpoint=self._recipe.model.checkpointing in ("step", "both"),
        )

    def _show(self, latents: Tensor, clips: Batch, drawn: Tensor, step: int) -> Made:
        """Decode the frames that the judges want to see, given those drawn [B, S], and clamp them."""
        check_finite("the edited latents", latents, step, clips)
        if latents.requires_grad:
            latents.register_hook(lambda gradient: check_finite("the latents' gradient", gradient, step, clips))
        shown = self._shown(drawn)
        with self._clock("decode"):
            pixels = self._decode(latents, shown)
            check_finite("the decoded frames", pixels, step, clips)
            saturation = ((pixels < 0) | (pixels > 1)).float().mean().item()
        return Made(clips, drawn, shown, clamp_pixels(pixels, self._recipe.reward.clamp), saturation)

    def _decode(self, latents: Tensor, shown: Tensor) -> Tensor:
        context = self._recipe.model.vae_context
        if self._recipe.reward.decode == "frame_by_frame":
            return frame_by_frame(partial(self._model.decode_apart, context=context), latents, shown)
        return self._model.decode_frames(latents, shown, context=context)

    def _draw_frames(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One frame per segment and clip (Eq. 6)."""
        frames, segments = self._recipe.data.frames, self._recipe.reward.segments
        return sample_segments(len(generators), frames, segments, generator=generators)


def _require_default(recipe: Recipe, key: str) -> None:
    """Refuse an option of `editing` that the objective has no use for."""
    value, usual = getattr(recipe.editing, key), type(recipe.editing).model_fields[key].default
    if value != usual:
        raise ValueError(
            f"editing.{key} {value!r}: training.objective {recipe.training.objective!r} does not know it; allowed: "
            f"{'null' if usual is None else usual}"
        )
