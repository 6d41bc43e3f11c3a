"""A sweep from its options to its best trial: the parent run in MLflow, and the trials under Ray Tune."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from rayvideo.data.latents import prepare_to
from rayvideo.errors import RecipeError, UserError
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.runs import folder as runs
from rayvideo.runs.lock import only_driver
from rayvideo.settling import settle
from rayvideo.storage import is_file, join, read_bytes, write_bytes
from rayvideo.sweep.options import Sweep
from rayvideo.sweep.trial import SCORE, STEP, Running, Trial
from rayvideo.sweep.turn import HEAD
from rayvideo.tracking import RunRef, Tracker, create_run, find_run, tracking_uri

SWEEP = "sweep.json"  # in the sweep's folder: what it was begun with
QUIET = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial says that nothing is new
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # figures are in MLflow
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables, beside ours
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # or relative paths of the recipe would mean something else in trials
}
TELLTALES = ("ray.tune.tune", "ray.tune.execution.tune_controller")
"""Loggers that print a failed trial's traceback, of which the table has the reason, and how Tune itself would go on."""
logger = logging.getLogger(__name__)


class SweepError(UserError, RuntimeError):
    """Trials failed."""


def plan(recipe_file: str, typed: Sequence[str], sweep: Sweep) -> tuple[Recipe, list[Trial]]:
    """The recipe that all trials share, and the trials; nothing is started or written.

    Raises:
        RecipeError: the recipe, or that of a trial; the sweep has no name or no figure to choose by.
    """
    fixed = [*typed, "evaluation.judge_previews=true"]
    shared = load_recipe(recipe_file, fixed)
    name = shared.tracking.run_name
    if name is None:
        raise RecipeError("tracking.run_name: a sweep needs a name, by which the same command goes on with it")
    if not 0 < shared.evaluation.every <= shared.training.steps:
        raise RecipeError(
            f"evaluation.every {shared.evaluation.every}: trials are compared by the held-out judge at these steps; "
            f"allowed: 1 to {shared.training.steps}"
        )
    changes = sweep.trials()
    digits = len(str(len(changes) - 1))
    trials = []
    for number, own in enumerate(changes):
        overrides = [*fixed, *own, f"tracking.run_name={name}-{number:0{digits}d}"]
        recipe = load_recipe(recipe_file, overrides)
        trials.append(
            Trial(
                name=f"{name}-{number:0{digits}d}",
                changes=own,
                tree=recipe.model_dump(mode="json"),
                typed=overrides,
                metrics=sweep.metrics(recipe),
            )
        )
    return shared, trials


def run(shared: Recipe, trials: Sequence[Trial], sweep: Sweep, typed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run the trials that are not done yet, and return what came of all of them, as `outcomes` does.

    Needs a running Ray.

    Raises:
        UserError: the sweep was begun with other options, or no trial can run.
        KeyboardInterrupt: Ctrl-C or SIGTERM ended it; the trials saved their state, and the same command goes on.
    """
    folder = runs.folder_of(shared)
    with only_driver(folder):
        ref = _open(shared, trials, folder, typed)
        with Tracker(ref) as tracker:
            placed = [_placed(trial, shared, ref, folder, sweep) for trial in trials]
            errors = _tune(placed, shared, sweep, folder)
            found = outcomes(placed, errors)
            _sum_up(found, folder, tracker)
    return found


def outcomes(trials: Sequence[Trial], errors: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """What became of each trial, by the files and MLflow: name, changes, status, step, score, and error if it failed.

    The status is finished, ended early, failed or open: not begun, or not done yet.

    Args:
        errors: Name -> why a trial failed.
    """
    found = []
    for trial in trials:
        curve, error = trial.curve(trial.tracker()), (errors or {}).get(trial.name)
        status = "failed" if error else "finished" if trial.finished() else "ended early" if trial.ended() else "open"
        step, score = max(curve.items(), default=(0, None))
        found.append(
            {"name": trial.name, "changes": trial.changes, "status": status, "step": step, "score": score}
            | ({"error": error} if status == "failed" else {})
        )
    return found


def best(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished trial with the highest score at its last step; None if none is finished."""
    finished = [one for one in found if one["status"] == "finished" and one["score"] is not None]
    return max(finished, key=lambda one: one["score"], default=None)


def _open(shared: Recipe, trials: Sequence[Trial], folder: str, typed: Sequence[str]) -> RunRef:
    """The parent run in MLflow: a new one, or that of the sweep which goes on."""
    begun = {"trials": [trial.changes for trial in trials]}
    if is_file(join(folder, SWEEP)):
        ref = find_run(shared, runs.begun(shared))
        if json.loads(read_bytes(join(folder, SWEEP))) != begun:
            raise RecipeError(
                f"tracking.run_name {shared.tracking.run_name!r}: this sweep was begun with other trials; go on with "
                "those, or choose another name"
            )
        Tracker(ref).reopen()
        return ref
    runs.refuse_taken(shared)
    ref = create_run(shared, folder, typed)
    runs.write_recipe(shared)
    runs.write_run(folder, ref)
    write_bytes(join(folder, SWEEP), json.dumps(begun, indent=2).encode())
    return ref


def _placed(trial: Trial, shared: Recipe, ref: RunRef, folder: str, sweep: Sweep) -> Trial:
    """The trial below its sweep in MLflow; with clips that are encoded already, where all trials share them."""
    recipe = trial.recipe
    tracking = {"parent": ref.run_id, "uri": tracking_uri(shared)}
    changed: dict[str, Any] = {"tracking": recipe.tracking.model_copy(update=tracking)}
    if recipe.data.manifest is not None and not {key.partition(".")[0] for key in sweep.vary} & {"data", "model"}:
        latents = {"manifest": None, "prepared": join(folder, "latents")}
        changed["data"] = recipe.data.model_copy(update=latents)
    placed = recipe.model_copy(update=changed)
    # A trial that was begun keeps the number formats that it has.
    settled = placed if trial.begun() else settle(placed, "training")
    return Trial(trial.name, trial.changes, settled.model_dump(mode="json"), trial.typed, trial.metrics)


class Halving(ASHAScheduler):
    """ASHA, which ends a trial whose score is not among the best at its rung; what it ends is written down."""

    def __init__(self, trials: Sequence[Trial], grace: int, most: int, keep: float) -> None:
        super().__init__(
            STEP, SCORE, "max", grace_period=grace, max_t=most, reduction_factor=keep, stop_last_trials=False
        )
        self._trials = trials

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Tune with what a trial reports."""
        decision = super().on_trial_result(tune_controller, trial, result)
        one = self._trials[trial.config["trial"]]
        if SCORE in result:
            logger.info("%s: step %d, score %.4f  (%s)", one.name, result[STEP], result[SCORE], ", ".join(one.changes))
        if decision != TrialScheduler.STOP:
            return decision
        if result[STEP] >= one.recipe.training.steps or one.finished():
            return TrialScheduler.CONTINUE  # only its product is left to be put in its place
        one.end(result[STEP], result[SCORE])
        logger.info("%s: ended early, others are better at this step", one.name)
        return decision


def _tune(trials: list[Trial], shared: Recipe, sweep: Sweep, folder: str) -> dict[str, str]:
    """Run the trials under Ray Tune, those of an earlier start too, and return why which of them failed."""
    _encode(trials, shared, folder)
    os.environ.update(QUIET)
    most = max(trial.recipe.training.steps for trial in trials)
    scheduler = Halving(trials, sweep.first_rung(shared), most, sweep.keep)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Running, trials=trials), HEAD),
        param_space={"trial": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=sweep.concurrent),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's own are in its run folder
        ),
    )
    for name in TELLTALES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # Tune handles only that
    try:
        results = tuner.fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [result for result in results if result.config and result.error]
    errors = {trials[result.config["trial"]].name: _reason(result.error) for result in failed}
    if any(one["status"] == "open" for one in outcomes(trials, errors)):
        logger.warning("the sweep was interrupted, and its trials are saved: the same command goes on with them")
        raise KeyboardInterrupt
    return errors


def _encode(trials: list[Trial], shared: Recipe, folder: str) -> None:
    """Encode the clips once, if trials share them and any of them is still to be run."""
    latents = join(folder, "latents")
    if any(trial.recipe.data.prepared == latents and not (trial.finished() or trial.ended()) for trial in trials):
        prepare_to(shared, latents)


def _reason(error: BaseException) -> str:
    """Why a trial failed, in a line; Tune wraps what Ray wrapped."""
    cause: Any = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return " ".join(str(cause).split())[-400:] or repr(cause)


def _sum_up(found: list[dict[str, Any]], folder: str, tracker: Tracker) -> None:
    """Write what came of the sweep into its folder and its run in MLflow."""
    chosen = best(found)
    facts = {"finished": True, "trials": found, "best": chosen, "mlflow": tracker.ref.shareable()}
    summary = runs.write_summary(folder, facts)
    if chosen:
        tracker.tag(best=chosen["name"], **{"best.changes": " ".join(chosen["changes"])})
    with TemporaryDirectory() as work:
        file = Path(work, "summary.json")
        file.write_text(json.dumps(summary, indent=2))
        tracker.artifacts(file)
    if all(one["status"] == "failed" for one in found):
        raise SweepError(f"every trial failed; {found[0]['name']}: {found[0]['error']}")
