"""The loop that every worker runs: InstructVideo's algorithm, step by step."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import ray.train.torch
import torch

from rayvideo.data.storage import join
from rayvideo.data.table import Batch, LatentTable, batch_indices
from rayvideo.evaluation.previews import Previews
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe
from rayvideo.rewards import RewardError
from rayvideo.rewards.temporal import attenuation, video_reward
from rayvideo.seeding import seed_for
from rayvideo.serving.pool import Pending, RewardPool
from rayvideo.tracking import Tracker
from rayvideo.training.engine import Engine, Update
from rayvideo.training.guards import NonFiniteError, check_finite
from rayvideo.training.meters import Clock, Journal, mean_over_workers
from rayvideo.training.objective import reward_loss
from rayvideo.training.plan import STATE, Plan
from rayvideo.training.rollout import Edited, Editor
from rayvideo.training.schedule import learning_rate


def train(config: dict[str, Any]) -> None:
    """Train until the recipe's last step, from the run's newest checkpoint if there is one.

    Runs on each Ray Train worker with a process group; `config["plan"]` is a `Plan`.
    """
    plan: Plan = config["plan"]
    recipe, context = plan.recipe, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()

    model = load_model(
        recipe.model.path, dtype=DTYPES[recipe.training.precision], device=device, parts=("denoiser", "vae")
    )
    if recipe.model.checkpointing in ("blocks", "both"):
        model.enable_checkpointing()
    engine = Engine(add_lora(model.denoiser, recipe.model.lora, seed_for(recipe.seed, "lora")), recipe.training)
    model.denoiser = engine.denoiser
    start = _resume(engine)

    clock = Clock(device)
    editor = Editor(recipe, model, plan.table.unconditional(), clock)
    trainer = Trainer(recipe, editor, plan.table, plan.pool, engine, clock, rank=rank)
    tracker = Tracker(plan.tracking) if rank == 0 else None
    journal = Journal(join(plan.run_folder, "metrics.jsonl"), start) if rank == 0 else None
    previews = Previews(recipe, model, plan.shown, plan.pool, plan.run_folder, tracker, rank=rank, world_size=workers)

    if start == 0:
        previews.show(0)
    for step in range(start + 1, recipe.training.steps + 1):
        values = mean_over_workers(trainer.step(step), device)
        if tracker and journal:
            tracker.log(step, values)
            journal.add(step, values)
        last = step == recipe.training.steps
        if last or step % recipe.training.checkpoint_every == 0:
            if tracker and journal:
                tracker.flush()
                journal.save()
            _checkpoint(engine, plan, step, rank)
        if last or (recipe.evaluation.every and step % recipe.evaluation.every == 0):
            previews.show(step)
    if tracker:
        tracker.flush()
    engine.close()


class Trainer:
    """One optimizer step after another, as one of the recipe's workers."""

    def __init__(
        self,
        recipe: Recipe,
        editor: Editor,
        table: LatentTable,
        pool: RewardPool,
        engine: Engine,
        clock: Clock,
        *,
        rank: int = 0,
    ) -> None:
        self._recipe = recipe
        self._edit = editor
        self._table = table
        self._pool = pool
        self._engine = engine
        self._clock = clock
        self._rank = rank
        self._ahead = 1 if can_roll_ahead(recipe) else 0

    def step(self, step: int) -> dict[str, float]:
        """Edit this worker's clips of optimizer step `step` (counted from 1), have them judged and learn from it.

        While one micro-batch is away at the judges, the next is edited: two graphs at most are alive.
        """
        self._clock.seconds.clear()
        away: deque[tuple[Edited, Pending]] = deque()
        learned = []
        with self._clock("step"):
            for first, clips in self._micro_batches(step):
                away.append(self._send(self._edit(clips, step, first)))
                if len(away) > self._ahead:
                    learned.append(self._learn(step, *away.popleft()))
            learned += [self._learn(step, *last) for last in away]
            lr = learning_rate(self._recipe.training, step)
            update = self._engine.step(lr)
        self._check(step, update)
        return {
            **{name: fmean(values[name] for values in learned) for name in learned[0]},
            "gradient_norm": update.gradient_norm,
            "clipped": float(0 < self._recipe.training.max_grad_norm < update.gradient_norm),
            "skipped": float(not update.applied),
            "lr": lr,
            **{f"seconds/{phase}": seconds for phase, seconds in self._clock.seconds.items()},
        }

    def _micro_batches(self, step: int) -> Iterator[tuple[int, Batch]]:
        """This worker's share of the step's clips, and where in the global batch each micro-batch starts."""
        size, chosen = self._recipe.training.batch_size, self._chosen(step)
        share = len(chosen) // self._recipe.training.workers
        for first in range(self._rank * share, (self._rank + 1) * share, size):
            with self._clock("data"):
                clips = self._table.rows(chosen[first : first + size])
            yield first, clips

    def _chosen(self, step: int) -> list[int]:
        """Positions in the table of all workers' clips of a step."""
        options = self._recipe.training
        global_batch = options.workers * options.batch_size * options.accumulation
        return batch_indices(len(self._table), self._recipe.seed, step - 1, global_batch)

    def _send(self, edited: Edited) -> tuple[Edited, Pending]:
        """Send the decoded frames to the judges, without waiting."""
        segments = self._recipe.reward.segments
        captions = [caption for caption in edited.clips.captions for _ in range(segments)]
        with self._clock("judge"):
            return edited, self._pool.submit(edited.pixels.flatten(0, 1), captions)

    def _learn(self, step: int, edited: Edited, pending: Pending) -> dict[str, float]:
        """Wait for the scores, reward the videos (Eq. 7, 8), and add the gradient of the loss (Eq. 9)."""
        options, clips = self._recipe.reward, edited.clips
        with self._clock("judge"):
            try:
                scores = self._pool.result(pending).view(edited.indices.shape)
            except RewardError as error:
                raise RewardError(f"step {step}, clips {clips.ids}: {error}") from error
        weights = attenuation(edited.indices, self._recipe.data.frames, options.attenuation).to(scores.device)
        rewards = video_reward(scores, weights)
        loss = reward_loss(rewards)
        check_finite("the reward", rewards, step, clips)
        with self._clock("backward"):
            self._engine.backward(loss)
        return {
            "reward": rewards.mean().item(),
            "loss": loss.item(),
            "saturation": edited.saturation,
            **self._raw(pending),
        }

    def _raw(self, pending: Pending) -> dict[str, float]:
        """Each judge's unweighted scores, in all and by segment, and the norm of its gradient."""
        values = {}
        for judge, scores in pending.raw.items():
            segments = scores.view(-1, self._recipe.reward.segments).mean(0).tolist()
            values[f"score/{judge}"] = fmean(segments)
            values |= {f"score/{judge}/segment-{i}": score for i, score in enumerate(segments)}
            values[f"judge_gradient_norm/{judge}"] = pending.gradient_norm[judge]
        return values

    def _check(self, step: int, update: Update) -> None:
        # fp16 gradients may overflow now and then: DeepSpeed skips the step and scales its loss down.
        if not update.applied and self._recipe.training.precision != "fp16":
            clips = self._table.rows(self._chosen(step))
            raise NonFiniteError(f"step {step}: NaN or Inf in the adapter's gradient, from clips {clips.ids}")


def can_roll_ahead(recipe: Recipe) -> bool:
    """Whether the next micro-batch may be edited while one is away.

    ZeRO-3 loses gradients when another forward pass comes between a graph's forward and backward pass, unless the
    step is run again in the backward pass.
    """
    return recipe.training.zero_stage < 3 or recipe.model.checkpointing in ("step", "both")


def _resume(engine: Engine) -> int:
    """Load the run's newest checkpoint, if there is one, and return how many steps it holds."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        engine.load(Path(folder))
        return json.loads(Path(folder, STATE).read_text())["step"]


def _checkpoint(engine: Engine, plan: Plan, step: int, rank: int) -> None:
    """Hand everything that a run needs to go on to Ray Train, which registers it when all workers' parts are there."""
    weights = engine.adapter()
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise NonFiniteError(f"step {step}: NaN or Inf in the adapter's weights {name}")
    with TemporaryDirectory() as folder:
        engine.save(Path(folder))
        if rank == 0:
            engine.save_adapter(Path(folder, "adapter"), weights)
            state = {"step": step, "mlflow": plan.tracking.shareable(), "recipe": plan.recipe.model_dump(mode="json")}
            Path(folder, STATE).write_text(json.dumps(state, indent=2))
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{step:06d}",
        )
