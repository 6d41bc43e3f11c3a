"""InstructVideo's algorithm, step by step: one worker's part of an optimizer step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rayvideo.data.table import Batch, LatentTable, batch_indices
from rayvideo.recipe import Recipe
from rayvideo.rewards import RewardError
from rayvideo.serving import clip_reward
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.training.engine import Engine, Update
from rayvideo.training.guards import NonFiniteError, check_finite
from rayvideo.training.meters import Clock
from rayvideo.training.objective import Judged, Made, Objective
from rayvideo.training.schedule import learning_rate


class Trainer:
    """One optimizer step after another, as one of the recipe's workers."""

    def __init__(
        self,
        recipe: Recipe,
        objective: Objective[Any],
        table: LatentTable,
        reward: ClipReward,
        engine: Engine,
        clock: Clock,
        *,
        rank: int = 0,
    ) -> None:
        self._recipe = recipe
        self._objective = objective
        self._table = table
        self._reward = reward
        self._engine = engine
        self._clock = clock
        self._rank = rank
        self._ahead = how_far_ahead(recipe, objective)
        self._taken: list[int] = []
        self._seen: list[dict[str, float]] = []
        self.first_sent: Tensor | None = None
        """The frames that were sent to the judges first, [B, U, 3, H, W]."""

    def step(self, step: int) -> dict[str, float]:
        """Make this worker's clips of optimizer step `step` (counted from 1), have them judged and learn from it.

        Returns:
            What docs/summary.md lists under metrics.jsonl.
        """
        self._clock.seconds.clear()
        self._seen = []
        with self._clock("step"):
            losses, updates = [], []
            for update in self._objective.updates(step, self._judged(step)):
                for loss in update:
                    check_finite("the loss", loss.value, step, loss.clips)
                    with self._clock("backward"):
                        self._engine.backward(loss.value)
                    losses.append(loss.value.item())
                updates.append(self._update(step))
        return self._report(step, losses, updates)

    def taken(self) -> list[int]:
        """Ids of this worker's clips since this was asked last, in the order of the global batch."""
        taken, self._taken = self._taken, []
        return taken

    def _judged(self, step: int) -> Iterator[Judged]:
        """This worker's micro-batches, made and judged; while one is away at the judges, the next is made."""
        away: deque[tuple[Made, clip_reward.Request]] = deque()
        for first, clips in self._micro_batches(step):
            away.append(self._send(self._objective.make(clips, step, first)))
            if len(away) > self._ahead:
                yield self._receive(step, *away.popleft())
        while away:
            yield self._receive(step, *away.popleft())

    def _micro_batches(self, step: int) -> Iterator[tuple[int, Batch]]:
        """This worker's share of the step's clips, and where in the global batch each micro-batch starts."""
        size, chosen = self._recipe.training.batch_size, self._chosen(step)
        share = size * self._recipe.training.accumulation_of(dist.get_world_size())
        for first in range(self._rank * share, (self._rank + 1) * share, size):
            with self._clock("data"):
                clips = self._table.rows(chosen[first : first + size])
            yield first, clips

    def _chosen(self, step: int) -> list[int]:
        """Positions in the table of all workers' clips of a step, those of one caption's samples in a row."""
        options = self._recipe.training
        each = options.samples_per_caption if self._objective.compares_samples else 1
        captions = batch_indices(len(self._table), self._recipe.seed, step - 1, options.global_batch // each)
        return [clip for clip in captions for _ in range(each)]

    def _send(self, made: Made) -> tuple[Made, clip_reward.Request]:
        """Send the decoded frames to the judges, without waiting."""
        self._taken += made.clips.ids
        if self.first_sent is None:
            self.first_sent = made.pixels.detach().cpu()
        with self._clock("judge"):
            gradient = made.pixels.requires_grad
            return made, self._reward.submit(made.pixels, made.shown, made.drawn, made.clips.captions, gradient)

    def _receive(self, step: int, made: Made, request: clip_reward.Request) -> Judged:
        """Wait for the clips' rewards [B] (Eq. 7, 8)."""
        with self._clock("judge"):
            try:
                judged = self._reward.result(request)
            except RewardError as error:
                raise RewardError(f"step {step}, clips {made.clips.ids}: {error}") from error
        check_finite("the reward", judged.rewards, step, made.clips)
        self._seen.append(_seen(made, judged))
        return Judged(made, judged.rewards)

    def _update(self, step: int) -> Update:
        """Let the engine make an optimizer step of the gradients."""
        update = self._engine.step(learning_rate(self._recipe.training, step))
        # fp16 gradients may overflow now and then: DeepSpeed skips the step and scales its loss down.
        if not update.applied and self._recipe.training.precision != "fp16":
            clips = self._table.rows(self._chosen(step))
            raise NonFiniteError(f"step {step}: NaN or Inf in the adapter's gradient, from clips {clips.ids}")
        return update

    def _report(self, step: int, losses: Sequence[float], updates: Sequence[Update]) -> dict[str, float]:
        options = self._recipe.training
        means = {name: fmean(values[name] for values in self._seen) for name in self._seen[0]}
        return {
            "reward": means.pop("reward"),
            "loss": fmean(losses),
            **means,
            "gradient_norm": fmean(update.gradient_norm for update in updates),
            "clipped": fmean(0 < options.max_grad_norm < update.gradient_norm for update in updates),
            "skipped": fmean(not update.applied for update in updates),
            "lr": learning_rate(options, step),
            **{f"seconds/{phase}": seconds for phase, seconds in self._clock.seconds.items()},
        }


def _seen(made: Made, judged: clip_reward.Judged) -> dict[str, float]:
    """Reward, saturation, each judge's unweighted scores, in all and by segment, norms and cosines of gradients."""
    values = {"reward": judged.rewards.mean().item(), "saturation": made.saturation}
    for judge, scores in judged.scores.items():
        if scores.ndim == 1:  # one score a clip
            values[f"score/{judge}"] = scores.mean().item()
            continue
        segments = scores.mean(0).tolist()
        values[f"score/{judge}"] = fmean(segments)
        values |= {f"score/{judge}/segment-{i}": score for i, score in enumerate(segments)}
    values |= {f"judge_micro_batch/{judge}": frames for judge, frames in judged.micro_batch.items()}
    values |= {f"judge_gradient_norm/{judge}": norm for judge, norm in judged.gradient_norm.items()}
    return values | {f"judge_cosine/{a}/{b}": cosine for (a, b), cosine in judged.cosine.items()}


def how_far_ahead(recipe: Recipe, objective: Objective[Any] | type[Objective[Any]]) -> float:
    """How many micro-batches may be made while one is away at the judges.

    Without graphs, all: they are compared with each other anyway. With them, one: two graphs at most are alive. Nor
    that with ZeRO-3, which loses gradients when another forward pass comes between a graph's forward and backward pass,
    unless the step is run again in the backward pass.
    """
    if not objective.needs_gradient:
        return math.inf
    return 1 if recipe.training.zero_stage < 3 or recipe.model.checkpointing in ("step", "both", "clips") else 0
