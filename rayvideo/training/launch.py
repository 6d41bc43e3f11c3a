"""A fine-tuning from recipe to adapter: checks, clips, judges, MLflow, and Ray Train around the loop."""

from __future__ import annotations

import logging
import os
import time
from typing import Any
from uuid import uuid4

from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rayvideo.data.latents import open_latents
from rayvideo.data.prepared import write_rejected
from rayvideo.data.storage import join
from rayvideo.data.table import LatentTable
from rayvideo.errors import UserError
from rayvideo.evaluation.folder import is_file, read_lines
from rayvideo.evaluation.previews import embed_shown
from rayvideo.recipe import Recipe, RecipeError
from rayvideo.serving.pool import RewardPool
from rayvideo.tracking import RunRef, Tracker, create_run, find_run, tracking_uri, versions
from rayvideo.training import folder as runs
from rayvideo.training.attempts import attempts_of
from rayvideo.training.checkpoints import (
    CHECKPOINTS,
    CheckpointError,
    Good,
    fetched,
    forget_reports,
    name_of,
    newest_good,
)
from rayvideo.training.failures import OnFailure
from rayvideo.training.following import following
from rayvideo.training.plan import Plan
from rayvideo.training.retention import Retention

logger = logging.getLogger(__name__)


def finetune(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the recipe's model and return what is then in the run folder's summary.json.

    Needs a running Ray, and a recipe that passed `preflight.check`.

    Args:
        resume: Go on with the run of this name from its newest good checkpoint. A run that has done all of its steps
            is left as it is.

    Raises:
        UserError: naming what the recipe, its files, a clip or a judge lacks; also where NaN or Inf appeared.
    """
    started = time.monotonic()
    recipe = runs.named(recipe)
    tracking_uri(recipe)  # refuses sqlite in a bucket, before clips are encoded
    if not resume:
        runs.refuse_taken(recipe)
        return _train(recipe, None, "started", started)
    ref = find_run(recipe, runs.begun(recipe))
    good, refused = newest_good(runs.folder_of(recipe), ref.run_id)
    for one in refused:
        logger.warning("checkpoint refused: %s", one.why)
    done, steps = good.step if good else 0, recipe.training.steps
    if done > steps:
        raise RecipeError(f"training.steps {steps}: run {recipe.tracking.run_name!r} has done {done} steps already")
    if good is None or done < steps:
        logger.info("going on from step %d", done)
        return _train(recipe, ref, "resumed", started)
    summary = runs.known(runs.folder_of(recipe))
    if summary.get("finished"):
        logger.info("run %r is finished; raise training.steps above %d to go on", recipe.tracking.run_name, steps)
        return summary
    with Tracker(ref) as tracker:
        return _finish(recipe, ref, tracker, started)


def _train(recipe: Recipe, ref: RunRef | None, why: str, started: float) -> dict[str, Any]:
    """Everything that a training takes; `ref` is the MLflow run of one that goes on."""
    pool = RewardPool(recipe.reward.judges, name=recipe.tracking.run_name)
    try:
        table = open_latents(recipe)  # this and the next line while the judges load
        shown = embed_shown(recipe)
        pool.wait_until_ready()
        ref = _begin(recipe, table, ref)
        with Tracker(ref) as tracker:
            _fit(Plan(recipe, runs.folder_of(recipe), table, pool, shown, ref, uuid4().hex[:8], why))
            return _finish(recipe, ref, tracker, started)
    finally:
        pool.close()


def _begin(recipe: Recipe, table: LatentTable, ref: RunRef | None) -> RunRef:
    """Take the run folder and an MLflow run: a new one, or that of a training that goes on."""
    folder = runs.folder_of(recipe)
    runs.write_recipe(recipe)
    write_rejected(join(folder, "rejected.jsonl"), table.rejected)
    if ref is None:
        ref = create_run(recipe, folder)
        runs.write_run(folder, ref)
    else:
        Tracker(ref).reopen()
        forget_reports(folder)
    clips = {"clips": len(table), "rejected": len(table.rejected)}
    runs.write_summary(folder, {"finished": False, "run_folder": folder, "mlflow": ref.shareable(), **clips})
    return ref


def _fit(plan: Plan) -> None:
    """Run the loop on the recipe's workers; lost ones are replaced, and go on from the newest checkpoint."""
    options = plan.recipe.training
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # or relative paths of the recipe would mean something else in workers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if options.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker={"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=plan.run_folder,
            failure_config=FailureConfig(max_failures=options.max_failures),
            callbacks=[
                OnFailure(plan.run_folder),
                Retention(plan.run_folder, options.keep_checkpoints, options.keep_best),
            ],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what fails is raised here, or told by OnFailure
        ),
    )
    judges = [judge.name for judge in plan.recipe.reward.judges]
    try:
        with following(plan.run_folder, options.steps, judges, plan.call):
            trainer.fit()
    except ControllerError as error:
        raise (error.controller_failure if isinstance(error.controller_failure, UserError) else error) from None


def _work(config: dict[str, Any]) -> None:
    from rayvideo.training.loop import train  # the driver can do without DeepSpeed, whose import takes seconds

    train(config)


def _finish(recipe: Recipe, ref: RunRef, tracker: Tracker, started: float) -> dict[str, Any]:
    """Put the adapter in its place, into MLflow too, and sum the run up.

    Raises:
        CheckpointError: what was written last can't be read.
    """
    folder = runs.folder_of(recipe)
    newest, refused = newest_good(folder, ref.run_id)
    if newest is None or newest.step != recipe.training.steps:
        said = "; ".join(one.why for one in refused) or "it is gone"
        raise CheckpointError(f"the checkpoint of the last step can't be used: {said}. Resume the run to do it again")
    with fetched(newest.folder) as files:
        adapter = runs.copy_adapter(files / "adapter", folder)
        tracker.artifacts(files / "adapter", "adapter")
    steps = read_lines(join(folder, "metrics.jsonl"))
    return runs.write_summary(
        folder,
        {
            "finished": True,
            "adapter": adapter,
            "steps": newest.step,
            "seconds": round(time.monotonic() - started, 1),
            "attempts": len(attempts_of(folder)),
            "best": _best(folder, newest),
            **(runs.figures(steps, [judge.name for judge in recipe.reward.judges]) if steps else {}),
            "versions": versions(),
            "recipe": recipe.model_dump(mode="json"),
        },
    )


def _best(folder: str, newest: Good) -> dict[str, Any] | None:
    """The checkpoint with the highest mean reward, and its adapter's place if it was kept."""
    best = newest.state["best"]
    if best is None:
        return None
    adapter = join(folder, f"{CHECKPOINTS}/{name_of(best['step'])}/adapter")
    return {**best, "adapter": adapter if is_file(join(adapter, "adapter_config.json")) else None}
