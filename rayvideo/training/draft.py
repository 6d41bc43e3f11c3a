"""DRaFT (Clark et al. 2024): clips from pure noise, with a gradient through the end of the chain only."""

from __future__ import annotations

from dataclasses import replace

import torch

from rayvideo import editing
from rayvideo.data.table import Batch
from rayvideo.training.rollout import Edited, Rollout


class Drafter(Rollout):
    """Generates for the captions of the data; the clips themselves are not used.

    DRaFT-K differentiates the last K steps. DRaFT-LV adds noise to the finished sample `noisings` times, up to the last
    step's level, and differentiates each time the step that removes it: the returned batch is that many times as long.
    """

    def __call__(self, clips: Batch, step: int, first: int) -> Edited:
        options, noisings = self._recipe.editing, self._recipe.training.draft.noisings
        own = self._own("draft", clips, step, first)
        with self._clock("rollout"):
            latents = self._denoise(clips, self._pure_noise(own), self._grid, 0 if noisings else options.grad_steps)
            if noisings:
                last = self._grid[-1:]
                noise = torch.cat([editing.normal(latents.shape, own, latents.device) for _ in range(noisings)])
                noisy = editing.corrupt(latents.repeat(noisings, 1, 1, 1, 1), noise, self._model.scheduler, last)
                clips = _repeat(clips, noisings)
                latents = self._denoise(clips, noisy, last, 1)
        indices = torch.cat([self._draw_frames(own) for _ in range(noisings or 1)])
        return self._show(latents, clips, indices, step)


def _repeat(clips: Batch, times: int) -> Batch:
    return replace(
        clips,
        ids=clips.ids * times,
        videos=clips.videos * times,
        captions=clips.captions * times,
        mean=clips.mean.repeat(times, 1, 1, 1, 1),
        logvar=clips.logvar.repeat(times, 1, 1, 1, 1),
        embeddings=clips.embeddings.repeat(times, 1, 1),
    )
