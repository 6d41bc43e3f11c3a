"""InstructVideo's algorithm, step by step: one worker's part of an optimizer step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.data.table import Batch, LatentTable, batch_indices
from rayvideo.recipe import Recipe
from rayvideo.rewards import RewardError
from rayvideo.rewards.temporal import attenuation, video_reward
from rayvideo.serving.pool import Pending, RewardPool
from rayvideo.training.engine import Engine, Update
from rayvideo.training.guards import NonFiniteError, check_finite
from rayvideo.training.meters import Clock, gather_over_workers
from rayvideo.training.objective import reward_loss, standardised
from rayvideo.training.rollout import Edited, Rollout
from rayvideo.training.sampling import Sampled, Sampler
from rayvideo.training.schedule import learning_rate


class Trainer:
    """One optimizer step after another, as one of the recipe's workers; learns from the judges' gradients.

    Objectives reward and draft, which differ in their `rollout`.
    """

    def __init__(
        self,
        recipe: Recipe,
        rollout: Rollout,
        table: LatentTable,
        pool: RewardPool,
        engine: Engine,
        clock: Clock,
        *,
        rank: int = 0,
    ) -> None:
        self._recipe = recipe
        self._rollout = rollout
        self._table = table
        self._pool = pool
        self._engine = engine
        self._clock = clock
        self._rank = rank
        self._ahead = 1 if can_roll_ahead(recipe) else 0
        self._taken: list[int] = []
        self.first_sent: Tensor | None = None
        """The frames that were sent to the judges first, [B, S, 3, H, W]."""

    def step(self, step: int) -> dict[str, float]:
        """Edit this worker's clips of optimizer step `step` (counted from 1), have them judged and learn from it.

        While one micro-batch is away at the judges, the next is edited: two graphs at most are alive.
        """
        self._clock.seconds.clear()
        away: deque[tuple[Edited, Pending]] = deque()
        learned = []
        with self._clock("step"):
            for first, clips in self._micro_batches(step):
                away.append(self._send(self._rollout(clips, step, first)))
                if len(away) > self._ahead:
                    learned.append(self._learn(step, *away.popleft()))
            learned += [self._learn(step, *last) for last in away]
            update = self._update(step)
        return self._report(step, learned, [update])

    def taken(self) -> list[int]:
        """Ids of this worker's clips since this was asked last, in the order of the global batch."""
        taken, self._taken = self._taken, []
        return taken

    def _micro_batches(self, step: int) -> Iterator[tuple[int, Batch]]:
        """This worker's share of the step's clips, and where in the global batch each micro-batch starts."""
        size, chosen = self._recipe.training.batch_size, self._chosen(step)
        share = size * self._recipe.training.accumulation_of(dist.get_world_size())
        for first in range(self._rank * share, (self._rank + 1) * share, size):
            with self._clock("data"):
                clips = self._table.rows(chosen[first : first + size])
            yield first, clips

    def _chosen(self, step: int) -> list[int]:
        """Positions in the table of all workers' clips of a step."""
        return batch_indices(len(self._table), self._recipe.seed, step - 1, self._recipe.training.global_batch)

    def _send(self, edited: Edited) -> tuple[Edited, Pending]:
        """Send the decoded frames to the judges, without waiting."""
        segments = self._recipe.reward.segments
        self._taken += edited.clips.ids
        captions = [caption for caption in edited.clips.captions for _ in range(segments)]
        if self.first_sent is None:
            self.first_sent = edited.pixels.detach().cpu()
        with self._clock("judge"):
            return edited, self._pool.submit(edited.pixels.flatten(0, 1), captions, edited.pixels.requires_grad)

    def _judged(self, step: int, edited: Edited, pending: Pending) -> Tensor:
        """Wait for the scores and reward the videos: [B] (Eq. 7, 8)."""
        options, clips = self._recipe.reward, edited.clips
        with self._clock("judge"):
            try:
                scores = self._pool.result(pending).view(edited.indices.shape)
            except RewardError as error:
                raise RewardError(f"step {step}, clips {clips.ids}: {error}") from error
        weights = attenuation(edited.indices, self._recipe.data.frames, options.attenuation).to(scores.device)
        rewards = video_reward(scores, weights)
        check_finite("the reward", rewards, step, clips)
        return rewards

    def _learn(self, step: int, edited: Edited, pending: Pending) -> dict[str, float]:
        """Reward the videos and add the gradient of the loss (Eq. 9)."""
        rewards = self._judged(step, edited, pending)
        loss = reward_loss(rewards)
        with self._clock("backward"):
            self._engine.backward(loss)
        return {"reward": rewards.mean().item(), "loss": loss.item(), **self._seen(edited, pending)}

    def _update(self, step: int) -> Update:
        """Let the engine make an optimizer step of the gradients."""
        update = self._engine.step(learning_rate(self._recipe.training, step))
        # fp16 gradients may overflow now and then: DeepSpeed skips the step and scales its loss down.
        if not update.applied and self._recipe.training.precision != "fp16":
            clips = self._table.rows(self._chosen(step))
            raise NonFiniteError(f"step {step}: NaN or Inf in the adapter's gradient, from clips {clips.ids}")
        return update

    def _seen(self, edited: Edited, pending: Pending) -> dict[str, float]:
        """Saturation, each judge's unweighted scores, in all and by segment, the norms and cosines of gradients."""
        values = {"saturation": edited.saturation}
        for judge, scores in pending.raw.items():
            segments = scores.view(-1, self._recipe.reward.segments).mean(0).tolist()
            values[f"score/{judge}"] = fmean(segments)
            values |= {f"score/{judge}/segment-{i}": score for i, score in enumerate(segments)}
        values |= {f"judge_micro_batch/{judge}": frames for judge, frames in pending.micro_batch.items()}
        values |= {f"judge_gradient_norm/{judge}": norm for judge, norm in pending.gradient_norm.items()}
        return values | {f"judge_cosine/{a}/{b}": cosine for (a, b), cosine in pending.cosine.items()}

    def _report(self, step: int, learned: Sequence[dict[str, float]], updates: Sequence[Update]) -> dict[str, float]:
        options = self._recipe.training
        return {
            **{name: fmean(values[name] for values in learned) for name in learned[0]},
            "gradient_norm": fmean(update.gradient_norm for update in updates),
            "clipped": fmean(0 < options.max_grad_norm < update.gradient_norm for update in updates),
            "skipped": fmean(not update.applied for update in updates),
            "lr": learning_rate(options, step),
            **{f"seconds/{phase}": seconds for phase, seconds in self._clock.seconds.items()},
        }


class SamplingTrainer(Trainer):
    """Learns from the judges' scores alone: objectives rwr and ddpo, which differ in their `rollout`."""

    _rollout: Sampler

    def step(self, step: int) -> dict[str, float]:
        """Sample all of this worker's clips, have them judged, weigh them among all workers' and learn from them."""
        self._clock.seconds.clear()
        with self._clock("step"):
            samples, away = [], []
            for first, clips in self._micro_batches(step):
                samples.append(self._rollout(clips, step, first))
                away.append(self._send(samples[-1]))
            rewards = [self._judged(step, *one) for one in away]
            weights = self._weigh(rewards)
            losses, updates = [], []
            for number in range(self._rollout.updates):
                losses += [self._replay(step, number, *one) for one in zip(samples, weights, strict=True)]
                updates.append(self._update(step))
        learned = [
            {"reward": own.mean().item(), "loss": fmean(losses), **self._seen(*one)}
            for own, one in zip(rewards, away, strict=True)
        ]
        return self._report(step, learned, updates)

    def _chosen(self, step: int) -> list[int]:
        """Positions in the table of all workers' clips of a step, those of one caption's samples in a row."""
        each, size = self._recipe.training.samples_per_caption, self._recipe.training.global_batch
        captions = batch_indices(len(self._table), self._recipe.seed, step - 1, size // each)
        return [clip for clip in captions for _ in range(each)]

    def _weigh(self, rewards: list[Tensor]) -> Sequence[Tensor]:
        """What each sample of each micro-batch counts among those of all workers."""
        own = torch.cat(rewards)
        gathered, each = gather_over_workers(own), self._recipe.training.samples_per_caption
        weights = self._rollout.weigh(standardised(gathered, each if each > 1 else len(gathered)))
        return weights[self._rank * len(own) : (self._rank + 1) * len(own)].split([len(r) for r in rewards])

    def _replay(self, step: int, update: int, sampled: Sampled, weights: Tensor) -> float:
        """Add the gradients of an update's passes over a micro-batch and return their mean loss."""
        losses, passes = [], self._rollout.passes
        with self._clock("backward"):
            for number in range(update * passes, (update + 1) * passes):
                loss = self._rollout.loss(sampled, weights, step, number)
                check_finite("the loss", loss, step, sampled.clips)
                self._engine.backward(loss)
                losses.append(loss.item())
        return fmean(losses)


def can_roll_ahead(recipe: Recipe) -> bool:
    """Whether the next micro-batch may be edited while one is away.

    ZeRO-3 loses gradients when another forward pass comes between a graph's forward and backward pass, unless the
    step is run again in the backward pass.
    """
    return recipe.training.zero_stage < 3 or recipe.model.checkpointing in ("step", "both")
