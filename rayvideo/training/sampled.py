"""What objectives share that learn from scores alone: samples without a graph, and what they are worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.rewards.temporal import sample_segments
from rayvideo.seeding import generator_for
from rayvideo.training.meters import gather_over_workers
from rayvideo.training.objective import Judged, Loss, Made, Objective, OptionsT

if TYPE_CHECKING:
    from rayvideo.data.table import Batch
    from rayvideo.recipe import Recipe


@dataclass
class Sample(Made):
    """A micro-batch of clips made without a graph."""

    first: int
    """Place of its first clip in the step's global batch."""
    path: Tensor
    """Latents [T, B, C, F, h, w]: the way from pure noise to the sample, or only the sample, T = 1."""
    log_probs: Tensor
    """Of each step of the way that is learned, at most [T - 1, B]."""


def standardised(rewards: Tensor, group: int) -> Tensor:
    """Rewards [N] as distances from the mean of their group, in its standard deviations; 0 if none differ.

    Each `group` samples in a row are a group.
    """
    groups = rewards.view(-1, group)
    return ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True).clamp(min=1e-8)).flatten()


class Sampled(Objective[OptionsT]):
    """Samples clips, weighs them by their rewards among all workers', and learns from them in one or more updates."""

    needs_gradient = False
    compares_samples = True

    @classmethod
    def check(cls, recipe: Recipe, options: OptionsT) -> None:
        """Also refuse steps of a single sample, which can't be compared with any."""
        super().check(recipe, options)
        if recipe.training.global_batch < 2:
            raise ValueError(
                f"training.objective {recipe.training.objective!r} compares the samples of a step, but there is only "
                "one; raise training.batch_size, training.accumulation or training.workers"
            )

    @abstractmethod
    def weigh(self, advantages: Tensor) -> Tensor:
        """What each sample [N] of the global batch counts, given its standardised reward."""

    @abstractmethod
    def loss(self, sample: Sample, weights: Tensor, step: int, number: int) -> Tensor:
        """The loss of backward pass `number` on a micro-batch whose samples count `weights` [B].

        Passes are counted from 0 through all updates of a step.
        """

    @torch.no_grad()
    def make(self, clips: Batch, step: int, first: int) -> Sample:
        """Sample clips."""
        with self._clock("rollout"):
            path, log_probs = self._sample(clips, self._generators("sample", clips, step, first))
        # The same frames for all clips of a step: their attenuated scores are compared with each other, and would
        # otherwise differ by the frames that were drawn more than by what these show.
        frames, segments = self._recipe.data.frames, self._recipe.reward.segments
        generator = generator_for(self._recipe.seed, "frames", step)
        drawn = sample_segments(1, frames, segments, generator=generator).expand(len(clips.ids), -1)
        made = self._show(path[-1], clips, drawn, step)
        return Sample(**vars(made), first=first, path=path, log_probs=log_probs)

    def updates(self, step: int, judged: Iterator[Judged]) -> Iterator[Iterator[Loss]]:
        """Go over all samples `update_count` times."""
        samples, rewards = [], []
        for one in judged:
            samples.append(cast(Sample, one.made))
            rewards.append(one.rewards)
        weights = self._weigh(rewards)
        for number in range(self.update_count):
            yield self._replay(step, number, samples, weights)

    @abstractmethod
    def _sample(self, clips: Batch, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """`Sample.path` and `Sample.log_probs`."""

    def _weigh(self, rewards: Sequence[Tensor]) -> Sequence[Tensor]:
        """What each sample of each micro-batch counts among those of all workers."""
        mine = torch.cat(list(rewards))
        gathered, each = gather_over_workers(mine), self._recipe.training.samples_per_caption
        weights = self.weigh(standardised(gathered, each if each > 1 else len(gathered)))
        start = dist.get_rank() * len(mine)
        return weights[start : start + len(mine)].split([len(one) for one in rewards])

    def _replay(self, step: int, update: int, samples: Sequence[Sample], weights: Sequence[Tensor]) -> Iterator[Loss]:
        """The losses of an update's passes, micro-batch by micro-batch."""
        for sample, counts in zip(samples, weights, strict=True):
            for number in range(update * self.passes, (update + 1) * self.passes):
                with self._clock("backward"):
                    loss = self.loss(sample, counts, step, number)
                yield Loss(loss, sample.clips)
