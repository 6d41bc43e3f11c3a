"""The loop that every worker runs: one optimizer step after another, logged, saved and shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rayvideo.data.storage import join
from rayvideo.evaluation.previews import Previews
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora
from rayvideo.precision import DTYPES
from rayvideo.seeding import seed_for
from rayvideo.tracking import Tracker
from rayvideo.training.engine import Engine
from rayvideo.training.guards import NonFiniteError
from rayvideo.training.meters import Clock, Journal, mean_over_workers
from rayvideo.training.methods import rollout_for, trainer_for
from rayvideo.training.plan import STATE, Plan
from rayvideo.training.preemption import STOP, asked


def train(config: dict[str, Any]) -> None:
    """Train until the recipe's last step, or one after which workers were asked to stop, from the newest checkpoint.

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
    adapted = add_lora(model.denoiser, recipe.model.lora, seed_for(recipe.seed, "lora"))
    clock = Clock(device)
    rollout = rollout_for(recipe, model, plan.table.unconditional(), clock)
    engine = Engine(adapted, recipe.training, rollout.passes)
    model.denoiser = engine.denoiser
    start = _resume(engine)

    trainer = trainer_for(rollout, recipe, plan.table, plan.pool, engine, clock, rank=rank)
    tracker = Tracker(plan.tracking) if rank == 0 else None
    journal = Journal(join(plan.run_folder, "metrics.jsonl"), start) if rank == 0 else None
    previews = Previews(recipe, model, plan.shown, plan.pool, plan.run_folder, tracker, rank=rank, world_size=workers)

    if start == 0:
        previews.show(0)
    for step in range(start + 1, recipe.training.steps + 1):
        values = mean_over_workers({**trainer.step(step), STOP: asked(plan.mailbox, rank)}, device)
        stop = values.pop(STOP) > 0
        if tracker and journal:
            tracker.log(step, values)
            journal.add(step, values)
        last = step == recipe.training.steps
        if last or stop or step % recipe.training.checkpoint_every == 0:
            if tracker and journal:
                tracker.flush()
                journal.save()
            _checkpoint(engine, plan, step, rank)
        if stop and not last:
            break
        if last or (recipe.evaluation.every and step % recipe.evaluation.every == 0):
            previews.show(step)
    if tracker:
        tracker.flush()
    engine.close()


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
            state = {
                "step": step,
                "workers": dist.get_world_size(),
                "global_batch": plan.recipe.training.global_batch,
                "mlflow": plan.tracking.shareable(),
                "recipe": plan.recipe.model_dump(mode="json"),
            }
            Path(folder, STATE).write_text(json.dumps(state, indent=2))
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{step:06d}",
        )
