"""What objectives share that learn from scores alone: samples without a graph, and what they are worth."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rayvideo.data.table import Batch
from rayvideo.rewards.temporal import sample_segments
from rayvideo.seeding import generator_for
from rayvideo.training.rollout import Edited, Rollout


@dataclass
class Sampled(Edited):
    """A micro-batch of clips made from pure noise, without a graph."""

    first: int
    """Place of its first clip in the step's global batch."""
    path: Tensor
    """Latents [T, B, C, F, h, w]: the way from pure noise to the sample, or only the sample, T = 1."""
    log_probs: Tensor
    """Of each step of the way that is learned, at most [T - 1, B]."""


class Sampler(Rollout):
    """Samples clips, weighs them by their rewards, and gives the losses that the adapter learns from."""

    updates: int = 1
    """Optimizer updates on the same samples."""

    @abstractmethod
    def weigh(self, advantages: Tensor) -> Tensor:
        """What each sample [N] of the global batch counts, given its standardised reward."""

    @abstractmethod
    def loss(self, sampled: Sampled, weights: Tensor, step: int, number: int) -> Tensor:
        """The loss of backward pass `number` on a micro-batch whose samples count `weights` [B].

        Passes are counted from 0 through all updates of a step.
        """

    @torch.no_grad()
    def __call__(self, clips: Batch, step: int, first: int) -> Sampled:
        with self._clock("rollout"):
            path, log_probs = self._sample(clips, self._own("sample", clips, step, first))
        # The same frames for all clips of a step: their attenuated scores are compared with each other, and would
        # otherwise differ by the frames that were drawn more than by what these show.
        frames, segments = self._recipe.data.frames, self._recipe.reward.segments
        indices = sample_segments(
            1, frames, segments, generator=generator_for(self._recipe.seed, "frames", step)
        ).expand(len(clips.ids), -1)
        return Sampled(**vars(self._show(path[-1], clips, indices, step)), first=first, path=path, log_probs=log_probs)

    @abstractmethod
    def _sample(self, clips: Batch, own: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """`Sampled.path` and `Sampled.log_probs`."""
