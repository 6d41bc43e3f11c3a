"""Steps 2 to 8 of the algorithm: from stored posteriors to the pixels that a judge will look at.

`Editor` is InstructVideo's rollout; those of the baselines have files of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.data.table import Batch
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.rewards.pixels import clamp_pixels
from rayvideo.rewards.temporal import sample_segments
from rayvideo.seeding import generator_for
from rayvideo.training.guards import check_finite
from rayvideo.training.meters import Clock


@dataclass
class Edited:
    """A micro-batch of clips that the model made; their pixels carry the graph back to the adapter, if there is one."""

    clips: Batch
    indices: Tensor
    """Frames that were decoded, [B, S]."""
    pixels: Tensor
    """Those frames, clamped to [0, 1]: [B, S, 3, H, W]."""
    saturation: float
    """Share of pixel values that had to be clamped."""


class Rollout(ABC):
    """Makes clips with the model as it is now.

    Args:
        model: With denoiser (or the engine around it) and VAE.
        unconditional: Embedding [1, L, C] of the empty prompt.
        clock: Gets the phases "rollout" and "decode".
    """

    passes: int = 1
    """Losses, hence backward passes, per micro-batch."""

    def __init__(self, recipe: Recipe, model: VideoModel, unconditional: Tensor, clock: Clock) -> None:
        self._recipe = recipe
        self._model = model
        self._unconditional = unconditional
        self._clock = clock
        self._grid = editing.timesteps(model.scheduler, recipe.editing.steps, self._strength())

    @abstractmethod
    def __call__(self, clips: Batch, step: int, first: int) -> Edited:
        """Make clips for positions `first`, `first` + 1, … of the global batch of optimizer step `step`."""

    def _strength(self) -> float:
        return 1.0

    def _own(self, what: str, clips: Batch, step: int, first: int) -> list[torch.Generator]:
        """One generator per clip, by its place in the step: the worker that holds it makes no difference."""
        return [generator_for(self._recipe.seed, what, step, first + i) for i in range(len(clips.ids))]

    def _pure_noise(self, own: Sequence[torch.Generator]) -> Tensor:
        data, model = self._recipe.data, self._model
        shape = model.latent_shape(data.frames, data.height, data.width)
        return editing.normal((len(own), *shape), own, model.device)

    def _encoded(self, clips: Batch, own: Sequence[torch.Generator]) -> Tensor:
        """Latents of the clips of the data, drawn from their posteriors."""
        device = self._model.device
        return self._model.posterior(clips.mean.to(device), clips.logvar.to(device)).sample(own)

    def _predict(self, clips: Batch) -> editing.Predict:
        """The guided prediction for the clips' captions."""
        return self._model.guided(clips.embeddings, self._unconditional, self._recipe.editing.guidance)

    def _denoise(self, clips: Batch, noisy: Tensor, grid: Tensor, grad_steps: int) -> Tensor:
        """The chain over `grid` (Eq. 3, 4)."""
        return editing.denoise(
            self._predict(clips),
            noisy,
            self._model.scheduler,
            grid,
            grad_steps=grad_steps,
            checkpoint=self._recipe.model.checkpointing in ("step", "both"),
        )

    def _show(self, latents: Tensor, clips: Batch, indices: Tensor, step: int) -> Edited:
        """Decode the frames `indices` [B, S] and clamp them."""
        check_finite("the edited latents", latents, step, clips)
        if latents.requires_grad:
            latents.register_hook(lambda gradient: check_finite("the latents' gradient", gradient, step, clips))
        with self._clock("decode"):
            pixels = self._model.decode_frames(latents, indices)
            check_finite("the decoded frames", pixels, step, clips)
            saturation = ((pixels < 0) | (pixels > 1)).float().mean().item()
        return Edited(clips, indices, clamp_pixels(pixels, self._recipe.reward.clamp), saturation)

    def _draw_frames(self, own: Sequence[torch.Generator]) -> Tensor:
        """One frame per segment and clip (Eq. 6)."""
        return sample_segments(len(own), self._recipe.data.frames, self._recipe.reward.segments, generator=own)


class Editor(Rollout):
    """InstructVideo: corrupts the clips of the data to level τ and denoises them, the last K steps with a gradient."""

    def _strength(self) -> float:
        return self._recipe.editing.strength

    def __call__(self, clips: Batch, step: int, first: int) -> Edited:
        options, model = self._recipe.editing, self._model
        own = self._own("edit", clips, step, first)
        with self._clock("rollout"):
            latents = self._encoded(clips, own)
            noise = editing.offset_noise(latents, options.offset_noise, own)
            noisy = editing.corrupt(latents, noise, model.scheduler, self._grid[0])
            edited = self._denoise(clips, noisy, self._grid, options.grad_steps)
        return self._show(edited, clips, self._draw_frames(own), step)
