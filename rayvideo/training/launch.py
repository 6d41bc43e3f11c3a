"""A fine-tuning from recipe to adapter: checks, clips, judges, MLflow, attempts to reach the end, and the product."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from rayvideo.capacity import Part
from rayvideo.data.latents import open_latents
from rayvideo.data.prepared import list_digest, write_rejected
from rayvideo.data.table import LatentTable
from rayvideo.errors import RecipeError, Stopped
from rayvideo.evaluation import pyfunc
from rayvideo.evaluation.adapter import check_adapter
from rayvideo.evaluation.guarding.beside import beside
from rayvideo.evaluation.previews import embed_shown
from rayvideo.models import load_model, start
from rayvideo.progress import progress
from rayvideo.recipe import Recipe, shareable
from rayvideo.runs import folder as runs
from rayvideo.runs.attempts import attempts_of, note_lost
from rayvideo.runs.checkpoints import (
    CHECKPOINTS,
    CheckpointError,
    Good,
    Refused,
    name_of,
    newest_good,
    verify,
)
from rayvideo.runs.following import following
from rayvideo.runs.lock import only_driver
from rayvideo.runs.verdict import Verdict, verdict_of
from rayvideo.serving.pool import RewardPool
from rayvideo.settling import settle
from rayvideo.storage import absolute, fetched, is_file, join, read_lines
from rayvideo.tracking import Input, Product, RunRef, Tracker, create_run, overrides, versions
from rayvideo.training.line import Line
from rayvideo.training.needed import price_of_previews
from rayvideo.training.plan import Plan
from rayvideo.training.preflight import check_place
from rayvideo.training.ray_train.attempt import run_attempt
from rayvideo.training.ray_train.preemption import on_signals

logger = logging.getLogger(__name__)


def parts_of(recipe: Recipe) -> list[Part]:
    """What of the recipe a fine-tuning runs, and thus needs room for."""
    data: list[Part] = [] if recipe.data.prepared else ["data"]
    guards: list[Part] = ["generation"] if recipe.evaluation.guards else []
    held_out: list[Part] = ["held_out"] if recipe.evaluation.guards or recipe.evaluation.judge_previews else []
    return ["training", "judges", *data, *guards, *held_out]


def finetune(
    recipe: Recipe,
    resume: bool = False,
    overrule: bool = False,
    typed: Sequence[str] = (),
    line: Line | None = None,
) -> dict[str, Any]:
    """Fine-tune the recipe's model and return what is then in the run folder's summary.json.

    Needs a running Ray, and a recipe that passed `preflight.check`; what `preflight.check_place` refuses, it does too.

    Args:
        resume: Go on with the run of this name from its newest good checkpoint. A run that has done all of its steps,
            or was ended by a verdict of its stop rule, is left as it is.
        overrule: With `resume`: go on to the last step, whatever the stop rule said or would say.
        typed: The overrides of the command line, by which the run is found in MLflow.
        line: To another process that follows the run, and may end it.

    Raises:
        UserError: naming what the recipe, its files, a clip or a judge lacks; also where NaN or Inf appeared.
        Stopped: SIGTERM, SIGINT or the mailbox of `line` ended the run before its last step; it can be resumed.
    """
    line = line or Line()
    started = time.monotonic()
    recipe = runs.named(recipe)
    folder = runs.folder_of(recipe)
    ref = check_place(recipe, resume=resume, overrule=overrule)
    recipe = settle(runs.as_begun(recipe) if ref else recipe, "training")
    with only_driver(folder):
        if ref:
            return _go_on(recipe, ref, overrule, started, typed, line)
        return _train(recipe, recipe, None, "started", started, typed, line)


def _go_on(
    recipe: Recipe, ref: RunRef, overrule: bool, started: float, typed: Sequence[str], line: Line
) -> dict[str, Any]:
    """Resume the run, or finish it if only that was left to do."""
    folder, name = runs.folder_of(recipe), recipe.tracking.run_name
    good, refused = newest_good(folder, ref.run_id)
    for one in refused:
        logger.warning("checkpoint refused: %s", one.why)
    done, steps = good.step if good else 0, recipe.training.steps
    if done > steps:
        raise RecipeError(f"training.steps {steps}: run {name!r} has done {done} steps already")
    given = verdict_of(good.state, steps) if good else None
    verdict = None if overrule else given
    if overrule and given:
        Tracker(ref).tag(verdict=f"overruled: {given.reason}")
    if good is None or (done < steps and verdict is None):
        logger.info("going on from step %d", done)
        overruled = overrule or (good is not None and good.state.get("overruled", False))
        reason = f"resumed, the verdict of step {given.given_at} overruled" if overrule and given else "resumed"
        shared = with_original_global_batch(recipe, good)
        return _train(recipe, shared, ref, reason, started, typed, line, overruled)
    summary = runs.known(folder)
    if summary.get("finished") and not (overrule and summary.get("verdict")):
        if verdict:
            logger.info("run %r ended after step %d: %s; --overrule goes on", name, verdict.given_at, verdict.reason)
        else:
            logger.info("run %r is finished; raise training.steps above %d to go on", name, steps)
        return summary
    with Tracker(ref) as tracker:
        return _finish(recipe, good, refused, tracker, started, verdict)


def with_original_global_batch(recipe: Recipe, good: Good | None) -> Recipe:
    """The recipe with as many clips in an optimizer step as the run was begun with, whatever its workers are now.

    Args:
        good: The checkpoint that the run goes on from, if there is one yet.
    """
    if good is None:
        return recipe
    training = recipe.training.with_global_batch(good.state["global_batch"])
    return recipe.model_copy(update={"training": training})


def _train(
    recipe: Recipe,
    shared: Recipe,
    ref: RunRef | None,
    reason: str,
    started: float,
    typed: Sequence[str] = (),
    line: Line | None = None,
    overruled: bool = False,
) -> dict[str, Any]:
    """Everything that a training takes, from the judges' start to the summary.

    Args:
        shared: The recipe as the workers share it: with the global batch that the run was begun with.
        ref: The MLflow run of a training that goes on.
        reason: Why the workers start.
        started: `time.monotonic()` at the beginning of the call.
        typed: The overrides of the command line.
        line: To another process, if one follows.
        overruled: Whether the recipe's stop rule is not asked any more.
    """
    options, line = recipe.reward, line or Line()
    folder = runs.folder_of(recipe)
    pool = RewardPool(
        options.judges,
        name=recipe.tracking.run_name,
        shared=options.shared,
        merge_ms=options.merge_ms,
        wire=options.wire,
    )
    pools = [pool, *_held_out(recipe)]
    try:
        # The judges load meanwhile.
        table = open_latents(recipe, meanwhile=pool.refuse_broken)
        shown = embed_shown(recipe)
        if price := price_of_previews(recipe):
            logger.info(price)
        with progress("loading judges", sum(len(one.judges) for one in pools), unit="judge") as bar:
            for one in pools:
                one.wait_until_ready(lambda _: bar.update())
        ref = _begin(recipe, table, ref, typed)
        with Tracker(ref) as tracker:
            try:
                with beside(recipe, pool, folder) as guards:
                    newest, refused = _fit(
                        Plan(
                            recipe=shared,
                            run_folder=folder,
                            table=table,
                            pool=pool,
                            held_out=pools[1] if pools[1:] else None,
                            shown=shown,
                            guards=guards,
                            tracking=ref,
                            call_id=uuid4().hex[:8],
                            start_reason=reason,
                            overruled=overruled,
                            mailbox=line.mailbox,
                            board=line.board,
                        )
                    )
            except Stopped as stop:
                runs.write_summary(folder, {"finished": False, "steps": stop.steps})
                raise
            verdict = verdict_of(newest.state, recipe.training.steps) if newest else None
            return _finish(recipe, newest, refused, tracker, started, verdict)
    finally:
        for one in pools:
            one.close()


def _held_out(recipe: Recipe) -> list[RewardPool]:
    """The judges that score previews and nothing else, in a pool of their own; none where they are not asked."""
    if not recipe.evaluation.judge_previews:
        return []
    name, wire = f"{recipe.tracking.run_name}-held-out", recipe.reward.wire
    return [RewardPool(recipe.evaluation.judges, name=name, merge_ms=recipe.reward.merge_ms, wire=wire)]


def _begin(recipe: Recipe, table: LatentTable, ref: RunRef | None, typed: Sequence[str] = ()) -> RunRef:
    """Write into the run folder what is known now, which takes it, and open the MLflow run.

    Args:
        ref: The MLflow run of a training that goes on; None makes a new one.
    """
    folder = runs.folder_of(recipe)
    runs.write_recipe(recipe)
    write_rejected(join(folder, "rejected.jsonl"), table.rejected)
    clips = {"clips": len(table), "rejected": len(table.rejected)}
    if ref is None:
        ref = create_run(recipe, folder, typed)
        runs.write_run(folder, ref)
        Tracker(ref).tag(**{f"adapter.{name}": digest for name, digest in start.digests(recipe.model.lora).items()})
    else:
        Tracker(ref).reopen()
        if typed:
            Tracker(ref).tag(**overrides(typed))
    source = absolute(str(recipe.data.prepared or recipe.data.manifest))
    Tracker(ref).inputs(Input(Path(source).stem, source, list_digest(recipe), "training", clips))
    known = {"finished": False, "verdict": None, "run_folder": folder, "mlflow": ref.shareable(), **clips}
    runs.write_summary(folder, known)
    return ref


def _fit(plan: Plan) -> tuple[Good | None, list[Refused]]:
    """Run the loop to its end; lost workers are replaced, and go on from the newest checkpoint.

    The end is the last step or the verdict of the stop rule.

    Returns:
        `newest_good` of the run at its end.

    Raises:
        Stopped: SIGTERM, SIGINT or another process, by the plan's mailbox, ended it before.
    """
    steps = plan.recipe.training.steps
    with on_signals(plan.mailbox) as caught, following(plan.board, plan.run_folder, steps, plan.call_id):
        done = -1
        while True:
            run_attempt(plan)
            newest, refused = newest_good(plan.run_folder, plan.tracking.run_id)
            before, done = done, newest.step if newest else 0
            ended = newest is not None and verdict_of(newest.state, steps) is not None and not plan.overruled
            # Where no step was gained, another attempt would gain none either; `_finish` raises the reason.
            if done >= steps or ended or done == before:
                return newest, refused
            if plan.mailbox.asked():
                name, by = plan.recipe.tracking.run_name, caught[0] if caught else signal.SIGTERM
                raise Stopped(
                    f"stopped by {by.name} after step {done}, which is saved; go on with the same command and "
                    f"tracking.run_name={name} --resume",
                    done,
                    by,
                )
            note_lost(plan.run_folder, "workers had to end, and saved their state")
            logger.warning("workers had to end, saved after step %d: going on with as many as there is room for", done)


def _finish(
    recipe: Recipe,
    newest: Good | None,
    refused: list[Refused],
    tracker: Tracker,
    started: float,
    verdict: Verdict | None,
) -> dict[str, Any]:
    """Put the run's product in its place, into MLflow too, and sum the run up.

    The product is the adapter of the last step, or of the step that the verdict names.

    Raises:
        CheckpointError: the checkpoint of that step can't be read.
        ModelError: the adapter does not fit the model, or changes nothing.
    """
    folder = runs.folder_of(recipe)
    if newest is None or (newest.step != recipe.training.steps and verdict is None):
        said = "; ".join(one.why for one in refused) or "it is gone"
        raise CheckpointError(f"the checkpoint of the last step can't be used: {said}. Resume the run to do it again")
    product = _chosen(folder, newest, verdict, tracker.ref.run_id) if verdict else newest
    logger.info("keeping the adapter of step %d", product.step)
    with fetched(product.folder) as files:
        # Others will load it: every tensor of it must find its place in this model, and it must change something.
        model = load_model(recipe.model.path, family=recipe.model.family, device="meta", parts=("denoiser",))
        check_adapter(model, str(files / "adapter"))
        adapter = runs.copy_adapter(files / "adapter", folder)
        tracker.artifacts(files / "adapter", "adapter")
        _log_product(recipe, files / "adapter", product.step, tracker)
    if verdict:
        tracker.tag(verdict=verdict.reason, **{"verdict.step": verdict.step})
    steps = read_lines(join(folder, "metrics.jsonl"))
    return runs.write_summary(
        folder,
        {
            "finished": True,
            "verdict": verdict._asdict() if verdict else None,
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


def _log_product(recipe: Recipe, adapter: Path, step: int, tracker: Tracker) -> None:
    """Log what makes clips of captions, in any process that has this package and reaches the base model."""
    data = recipe.data
    with TemporaryDirectory() as folder:
        shutil.copytree(adapter, Path(folder, pyfunc.ADAPTER))
        pyfunc.write_recipe(recipe, Path(folder))
        product = Product(
            loader=pyfunc.__name__,
            folder=Path(folder),
            example=pyfunc.EXAMPLE,
            params=pyfunc.defaults(recipe),
            clip=(data.frames, data.height, data.width, 3),
            config=pyfunc.config(recipe),
        )
        tracker.product(product, step, recipe.tracking.register_as)


def _chosen(folder: str, newest: Good, verdict: Verdict, run: str) -> Good:
    """The checkpoint whose adapter a verdict names as the product.

    Args:
        run: Id of the MLflow run that the checkpoint must be of.
    """
    if verdict.step == newest.step:
        return newest
    try:
        return verify(join(folder, f"{CHECKPOINTS}/{name_of(verdict.step)}"), run)
    except CheckpointError as error:
        raise CheckpointError(
            f"training.stop_rule ended the run after step {verdict.given_at} in favour of the adapter of step "
            f"{verdict.step}, whose checkpoint can't be used: {error}. Put a good copy of it in its place and resume, "
            "or go on to the last step with --resume --overrule"
        ) from error


def _best(folder: str, newest: Good) -> dict[str, Any] | None:
    """The checkpoint with the highest mean training reward, with its adapter's path, None if that was deleted."""
    best = newest.state["best"]
    if best is None:
        return None
    adapter = join(folder, f"{CHECKPOINTS}/{name_of(best['step'])}/adapter")
    return {**best, "adapter": adapter if is_file(join(adapter, "adapter_config.json")) else None}
