"""A fine-tuning from recipe to adapter: checks, clips, judges, MLflow, and Ray Train around the loop."""

from __future__ import annotations

import logging
import os
import time
from typing import Any
from uuid import uuid4

import ray
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from rayvideo.data.latents import open_latents
from rayvideo.data.prepared import write_rejected
from rayvideo.data.storage import is_file, join, read_lines
from rayvideo.data.table import LatentTable
from rayvideo.errors import RecipeError, Stopped, UserError
from rayvideo.evaluation.adapter import check_adapter
from rayvideo.evaluation.previews import embed_shown
from rayvideo.models import load_model
from rayvideo.progress import progress
from rayvideo.recipe import Recipe, shareable
from rayvideo.runs import folder as runs
from rayvideo.runs.attempts import attempts_of, note_lost
from rayvideo.runs.checkpoints import (
    CHECKPOINTS,
    CheckpointError,
    Good,
    Refused,
    fetched,
    forget_reports,
    name_of,
    newest_good,
)
from rayvideo.runs.following import following
from rayvideo.runs.lock import only_driver
from rayvideo.runs.news import News
from rayvideo.serving.pool import RewardPool
from rayvideo.settling import settle
from rayvideo.tracking import RunRef, Tracker, create_run, versions
from rayvideo.training.plan import Plan
from rayvideo.training.preflight import check_place
from rayvideo.training.ray_train.elastic import Trainer
from rayvideo.training.ray_train.failures import OnFailure
from rayvideo.training.ray_train.preemption import OnSigterm, on_signals
from rayvideo.training.ray_train.retention import Retention
from rayvideo.training.ray_train.work import work

logger = logging.getLogger(__name__)


def finetune(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the recipe's model and return what is then in the run folder's summary.json.

    Needs a running Ray, and a recipe that passed `preflight.check`; what `preflight.check_place` refuses, it does too.

    Args:
        resume: Go on with the run of this name from its newest good checkpoint. A run that has done all of its steps
            is left as it is.

    Raises:
        UserError: naming what the recipe, its files, a clip or a judge lacks; also where NaN or Inf appeared.
        Stopped: SIGTERM or SIGINT ended the run before its last step; it can be resumed.
    """
    started = time.monotonic()
    recipe = runs.named(recipe)
    folder = runs.folder_of(recipe)
    ref = check_place(recipe, resume=resume)
    recipe = settle(runs.as_begun(recipe) if ref else recipe, "training")
    with only_driver(folder):
        return _go_on(recipe, ref, started) if ref else _train(recipe, recipe, None, "started", started)


def _go_on(recipe: Recipe, ref: RunRef, started: float) -> dict[str, Any]:
    """Resume the run, or finish it if only that was left to do."""
    folder = runs.folder_of(recipe)
    good, refused = newest_good(folder, ref.run_id)
    for one in refused:
        logger.warning("checkpoint refused: %s", one.why)
    done, steps = good.step if good else 0, recipe.training.steps
    if done > steps:
        raise RecipeError(f"training.steps {steps}: run {recipe.tracking.run_name!r} has done {done} steps already")
    if good is None or done < steps:
        logger.info("going on from step %d", done)
        return _train(recipe, _shared_as_begun(recipe, good), ref, "resumed", started)
    summary = runs.known(folder)
    if summary.get("finished"):
        logger.info("run %r is finished; raise training.steps above %d to go on", recipe.tracking.run_name, steps)
        return summary
    with Tracker(ref) as tracker:
        return _finish(recipe, good, refused, tracker, started)


def _shared_as_begun(recipe: Recipe, good: Good | None) -> Recipe:
    """The recipe, but a resumed run keeps the global batch that it was begun with, whatever its workers are now."""
    if good is None:
        return recipe
    training = recipe.training.with_global_batch(good.state["global_batch"])
    return recipe.model_copy(update={"training": training})


def _train(recipe: Recipe, shared: Recipe, ref: RunRef | None, why: str, started: float) -> dict[str, Any]:
    """Everything that a training takes.

    Args:
        shared: The recipe as the workers share it: with the global batch that the run was begun with.
        ref: The MLflow run of one that goes on.
    """
    options = recipe.reward
    pool = RewardPool(
        options.judges,
        name=recipe.tracking.run_name,
        shared=options.shared,
        merge_ms=options.merge_ms,
        wire=options.wire,
    )
    try:
        table = open_latents(recipe, meanwhile=pool.refuse_broken)  # this and the next line while the judges load
        shown = embed_shown(recipe)
        with progress("loading judges", len(pool.judges), unit="judge") as bar:
            pool.wait_until_ready(lambda _: bar.update())
        ref = _begin(recipe, table, ref)
        with Tracker(ref) as tracker:
            try:
                newest, refused = _fit(
                    Plan(shared, runs.folder_of(recipe), table, pool, shown, ref, uuid4().hex[:8], why)
                )
            except Stopped as stop:
                runs.write_summary(runs.folder_of(recipe), {"finished": False, "steps": stop.steps})
                raise
            return _finish(recipe, newest, refused, tracker, started)
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
    clips = {"clips": len(table), "rejected": len(table.rejected)}
    runs.write_summary(folder, {"finished": False, "run_folder": folder, "mlflow": ref.shareable(), **clips})
    return ref


def _fit(plan: Plan) -> tuple[Good | None, list[Refused]]:
    """Run the loop to the last step; lost workers are replaced, and go on from the newest checkpoint.

    Returns:
        `newest_good` of the run at its end.

    Raises:
        Stopped: SIGTERM or SIGINT ended it before.
    """
    steps = plan.recipe.training.steps
    with on_signals(plan.mailbox) as caught, following(plan.board, plan.run_folder, steps, plan.call):
        done = -1
        while True:
            _attempt(plan)
            newest, refused = newest_good(plan.run_folder, plan.tracking.run_id)
            before, done = done, newest.step if newest else 0
            if done >= steps or done == before:  # `_finish` says why there is no more
                return newest, refused
            if caught:
                name = plan.recipe.tracking.run_name
                raise Stopped(
                    f"stopped by {caught[0].name} after step {done}, which is saved; go on with the same command and "
                    f"tracking.run_name={name} --resume",
                    done,
                    caught[0],
                )
            note_lost(plan.run_folder, "workers had to end, and saved their state")
            logger.warning("workers had to end, saved after step %d: going on with as many as there is room for", done)


def _attempt(plan: Plan) -> None:
    """Run the loop until the workers end, after the last step or because they were asked to stop."""
    plan.board.pin(News("starting workers"))
    forget_reports(plan.run_folder)
    options = plan.recipe.training
    workers = options.workers
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # or relative paths of the recipe would mean something else in workers
    trainer = Trainer(
        work,
        sizes=options.sizes,
        train_loop_config={"plan": ray.put(plan)},
        torch_config=TorchConfig(backend="nccl" if options.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            elastic_resize_monitor_interval_s=workers.check_every_s,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker={"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker, **options.resources},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=plan.run_folder,
            failure_config=FailureConfig(max_failures=options.max_failures),
            callbacks=[
                OnFailure(plan.run_folder, plan.board),
                OnSigterm(),
                Retention(plan.run_folder, options.keep_checkpoints, options.keep_best == "reward"),
            ],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what fails is raised here, or told by OnFailure
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        raise (error.controller_failure if isinstance(error.controller_failure, UserError) else error) from None


def _finish(
    recipe: Recipe, newest: Good | None, refused: list[Refused], tracker: Tracker, started: float
) -> dict[str, Any]:
    """Put the adapter of the newest checkpoint in its place, into MLflow too, and sum the run up.

    Raises:
        CheckpointError: what was written last can't be read.
        ModelError: the adapter does not fit the model, or changes nothing.
    """
    folder = runs.folder_of(recipe)
    if newest is None or newest.step != recipe.training.steps:
        said = "; ".join(one.why for one in refused) or "it is gone"
        raise CheckpointError(f"the checkpoint of the last step can't be used: {said}. Resume the run to do it again")
    logger.info("keeping the adapter of step %d", newest.step)
    with fetched(newest.folder) as files:
        # What others will load binds to this model, every tensor of it, and changes something.
        check_adapter(
            load_model(recipe.model.path, family=recipe.model.family, device="meta", parts=("denoiser",)),
            str(files / "adapter"),
        )
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
            "recipe": shareable(recipe),
        },
    )


def _best(folder: str, newest: Good) -> dict[str, Any] | None:
    """The checkpoint with the highest mean training reward, and its adapter's place if it is there still."""
    best = newest.state["best"]
    if best is None:
        return None
    adapter = join(folder, f"{CHECKPOINTS}/{name_of(best['step'])}/adapter")
    return {**best, "adapter": adapter if is_file(join(adapter, "adapter_config.json")) else None}
