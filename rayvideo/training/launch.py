"""A fine-tuning from recipe to adapter: checks, clips, judges, MLflow, and Ray Train around the loop."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchConfig

from rayvideo.data.latents import open_latents
from rayvideo.data.prepared import write_rejected
from rayvideo.data.storage import join, read_bytes
from rayvideo.data.table import Rejected
from rayvideo.errors import Stopped, UserError
from rayvideo.evaluation.previews import embed_shown
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import RewardPool
from rayvideo.tracking import RunRef, Tracker, create_run, find_run, versions
from rayvideo.training import folder as runs
from rayvideo.training.elastic import Trainer
from rayvideo.training.failures import OnFailure
from rayvideo.training.following import following
from rayvideo.training.meters import Journal
from rayvideo.training.plan import STATE, Plan
from rayvideo.training.preemption import OnSigterm, on_signals

logger = logging.getLogger(__name__)


def finetune(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the recipe's model and return what is then in the run folder's summary.json.

    Needs a running Ray, and a recipe that passed `preflight.check`.

    Args:
        resume: Go on with the run of this name from its newest checkpoint.

    Raises:
        UserError: naming what the recipe, its files, a clip or a judge lacks; also where NaN or Inf appeared.
        Stopped: SIGTERM or SIGINT ended the run before its last step; it can be resumed.
    """
    started = time.monotonic()
    recipe = runs.named(recipe)
    checkpoint = runs.newest_checkpoint(recipe) if resume else None
    if not resume:
        runs.refuse_taken(recipe)
    shared = _shared_as_begun(recipe, checkpoint)
    pool = RewardPool(recipe.reward.judges, name=recipe.tracking.run_name)
    try:
        table = open_latents(recipe)  # this and the next line while the judges load
        shown = embed_shown(recipe)
        pool.wait_until_ready()
        ref = _begin(recipe, table.rejected, checkpoint)
        with Tracker(ref) as tracker:
            try:
                result = _fit(Plan(shared, runs.folder_of(recipe), table, pool, shown, ref))
            except Stopped as stop:
                runs.write_summary(runs.folder_of(recipe), {"finished": False, "steps": stop.steps})
                raise
            clips = {"clips": len(table), "rejected": len(table.rejected)}
            return _finish(recipe, result, tracker, {**clips, "seconds": round(time.monotonic() - started, 1)})
    finally:
        pool.close()


def _shared_as_begun(recipe: Recipe, checkpoint: Checkpoint | None) -> Recipe:
    """The recipe, but a resumed run keeps the global batch that it was begun with, whatever its workers are now."""
    if checkpoint is None:
        return recipe
    training = recipe.training.with_global_batch(_state(checkpoint)["global_batch"])
    return recipe.model_copy(update={"training": training})


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as files:
        return json.loads(Path(files, STATE).read_text())


def _begin(recipe: Recipe, rejected: Sequence[Rejected], checkpoint: Checkpoint | None) -> RunRef:
    """Take the run folder and an MLflow run: a new one, or the one that the checkpoint was logged to."""
    folder = runs.folder_of(recipe)
    runs.write_recipe(recipe)
    write_rejected(join(folder, "rejected.jsonl"), rejected)
    if checkpoint is None:
        ref = create_run(recipe, folder)
    else:
        state = _state(checkpoint)
        ref = find_run(recipe, state["mlflow"]["run_id"])
        tracker = Tracker(ref)
        tracker.reopen()
        tracker.tag(resumed_after_step=state["step"])
        Journal(join(folder, "metrics.jsonl"), state["step"])  # drops the steps that are done again
    runs.write_summary(folder, {"finished": False, "run_folder": folder, "mlflow": ref.shareable()})
    return ref


def _fit(plan: Plan) -> Result:
    """Run the loop to the last step; lost workers are replaced, and go on from the newest checkpoint.

    Raises:
        Stopped: SIGTERM or SIGINT ended it before.
    """
    judges = [judge.name for judge in plan.recipe.reward.judges]
    steps = plan.recipe.training.steps
    with on_signals(plan.mailbox) as caught, following(join(plan.run_folder, "metrics.jsonl"), steps, judges):
        while True:
            result = _attempt(plan)
            done = _state(result.checkpoint)["step"]
            if done >= steps:  # more, if a resumed run shall end earlier than it was begun to
                return result
            if caught:
                name = plan.recipe.tracking.run_name
                raise Stopped(
                    f"stopped by {caught[0].name} after step {done}, which is saved; go on with the same command and "
                    f"tracking.run_name={name} --resume",
                    done,
                    caught[0],
                )
            logger.warning("workers had to end, saved after step %d: going on with as many as there is room for", done)


def _attempt(plan: Plan) -> Result:
    """Run the loop until the workers end, after the last step or because they were asked to stop."""
    options = plan.recipe.training
    workers = options.workers
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # or relative paths of the recipe would mean something else in workers
    trainer = Trainer(
        _work,
        sizes=options.sizes,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if options.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            elastic_resize_monitor_interval_s=workers.check_every_s,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker={"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=runs.CHECKPOINTS,
            storage_path=plan.run_folder,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=options.keep_checkpoints),
            callbacks=[OnFailure(), OnSigterm()],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what fails is raised here, or told by OnFailure
        ),
    )
    try:
        return trainer.fit()
    except ControllerError as error:
        raise (error.controller_failure if isinstance(error.controller_failure, UserError) else error) from None


def _work(config: dict[str, Any]) -> None:
    from rayvideo.training.loop import train  # the driver can do without DeepSpeed, whose import takes seconds

    train(config)


def _finish(recipe: Recipe, result: Result, tracker: Tracker, facts: dict[str, Any]) -> dict[str, Any]:
    """Put the adapter in its place, into MLflow too, and sum the run up."""
    folder = runs.folder_of(recipe)
    with result.checkpoint.as_directory() as files:
        steps = json.loads(Path(files, STATE).read_text())["step"]
        adapter = runs.copy_adapter(Path(files, "adapter"), folder)
        tracker.artifacts(Path(files, "adapter"), "adapter")
    metrics = read_bytes(join(folder, "metrics.jsonl")).decode()
    return runs.write_summary(
        folder,
        {
            "finished": True,
            "adapter": adapter,
            "steps": steps,
            **facts,
            **runs.figures(metrics, [judge.name for judge in recipe.reward.judges]),
            "versions": versions(),
            "recipe": recipe.model_dump(mode="json"),
        },
    )
