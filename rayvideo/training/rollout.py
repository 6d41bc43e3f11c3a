"""Steps 2 to 8 of the algorithm: from stored posteriors to the pixels that a judge will look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.data.table import Batch
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.rewards import clamp_pixels
from rayvideo.rewards.temporal import sample_segments
from rayvideo.seeding import generator_for
from rayvideo.training.guards import check_finite
from rayvideo.training.meters import Clock


@dataclass
class Edited:
    """A micro-batch of edited clips; its pixels carry the graph back to the adapter."""

    clips: Batch
    indices: Tensor
    """Frames that were decoded, [B, S]."""
    pixels: Tensor
    """Those frames, clamped to [0, 1]: [B, S, 3, H, W]."""
    saturation: float
    """Share of pixel values that had to be clamped."""


class Editor:
    """Edits clips with the model as it is now.

    Args:
        model: With denoiser (or the engine around it) and VAE.
        unconditional: Embedding [1, L, C] of the empty prompt.
        clock: Gets the phases "rollout" and "decode".
    """

    def __init__(self, recipe: Recipe, model: VideoModel, unconditional: Tensor, clock: Clock) -> None:
        self._recipe = recipe
        self._model = model
        self._unconditional = unconditional
        self._clock = clock
        self._grid = editing.timesteps(model.scheduler, recipe.editing.steps, recipe.editing.strength)

    def __call__(self, clips: Batch, step: int, first: int) -> Edited:
        """Edit clips that stand at positions `first`, `first` + 1, … of the global batch of optimizer step `step`."""
        recipe, model = self._recipe, self._model
        # One generator per clip, by its place in the step: the worker that holds it makes no difference.
        own = [generator_for(recipe.seed, "edit", step, first + i) for i in range(len(clips.ids))]
        with self._clock("rollout"):
            latents = self._denoise(clips, own)
            check_finite("the edited latents", latents, step, clips)
        if latents.requires_grad:
            latents.register_hook(lambda gradient: check_finite("the latents' gradient", gradient, step, clips))
        with self._clock("decode"):
            indices = sample_segments(len(own), recipe.data.frames, recipe.reward.segments, generator=own)
            pixels = model.decode_frames(latents, indices)
            check_finite("the decoded frames", pixels, step, clips)
            saturation = ((pixels < 0) | (pixels > 1)).float().mean().item()
        return Edited(clips, indices, clamp_pixels(pixels, recipe.reward.clamp), saturation)

    def _denoise(self, clips: Batch, own: list[torch.Generator]) -> Tensor:
        """Corrupt to level τ and denoise, the last K steps with a gradient (Eq. 3-5)."""
        options, model = self._recipe.editing, self._model
        posterior = model.posterior(clips.mean.to(model.device), clips.logvar.to(model.device))
        latents = posterior.sample(own)
        noise = editing.offset_noise(latents, options.offset_noise, own)
        noisy = editing.corrupt(latents, noise, model.scheduler, self._grid[0])
        prompts = torch.cat([self._unconditional.expand_as(clips.embeddings), clips.embeddings]).to(model.device)
        return editing.denoise(
            editing.guided(lambda pair, timestep: model.predict(pair, timestep, prompts), options.guidance),
            noisy,
            model.scheduler,
            self._grid,
            grad_steps=options.grad_steps,
            checkpoint=self._recipe.model.checkpointing in ("step", "both"),
        )
