"""The loop that every worker runs: one optimizer step after another, logged, saved and shown."""

from __future__ import annotations

import os
import time
from typing import Any

import ray.train
import ray.train.torch
import torch
from peft import PeftModel

from rayvideo.evaluation.judge import sights
from rayvideo.evaluation.previews import Previews
from rayvideo.models.lora import pairs, parameter_count
from rayvideo.recipe import Recipe
from rayvideo.runs.journal import Journal
from rayvideo.runs.news import Reporter
from rayvideo.storage import join
from rayvideo.tracking import Tracker
from rayvideo.tracking.charts import step_charts
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.learning import FirstUpdates
from rayvideo.training.meters import Pace, gather_over_workers, mean_over_workers
from rayvideo.training.objective import Objective
from rayvideo.training.plan import Plan
from rayvideo.training.ray_train.preemption import STOP, asked
from rayvideo.training.ray_train.saver import Saver, agree, load
from rayvideo.training.stop_rule import Stopping
from rayvideo.training.watching import Watching


def train(plan: Plan) -> None:
    """Train from the newest checkpoint until the recipe's last step, or until one after which the run is to end.

    It ends early when its stop rule gives a verdict, and when workers were asked to stop. Runs on each worker of Ray
    Train, in a process group.
    """
    recipe, context = plan.recipe, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    report = Reporter(plan.board if rank == 0 else None)
    report.phase("looking for checkpoints")
    start = agree(plan, rank, workers)
    report.phase("loading the model")

    def make_engine(adapted: PeftModel, objective: Objective[Any]) -> DeepSpeedEngine:
        return DeepSpeedEngine(adapted, recipe.training, objective.passes, universal=start.by_others)

    model, adapted, objective, engine, trainer = assemble(
        recipe, plan.table, plan.pool, device, make_engine, rank=rank, fresh=start.step == 0
    )
    best = load(engine, plan, start, rank, workers)

    tracker = Tracker(plan.tracking, skip_logged=True) if rank == 0 else None
    journal = Journal(join(plan.run_folder, "metrics.jsonl"), start.step, best) if rank == 0 else None
    if tracker:
        tracker.tag(attempts=start.attempt, **{f"attempt.{start.attempt}": start.said})
        tracker.tag(**{"adapter.layers": len(pairs(adapted)), "adapter.parameters": parameter_count(adapted)})
    if tracker and recipe.tracking.system_metrics:
        tracker.watch_machine()
    report.stepped(start.step, attempt=start.attempt)
    previews = Previews(
        recipe,
        model,
        plan.shown,
        plan.pool,
        plan.run_folder,
        tracker,
        report.phase,
        held_out=plan.held_out,
        rank=rank,
        world_size=workers,
    )
    # Unless it starts from an adapter, previews of step 0 show the base alone. They wait for the first step: who starts
    # a run wants to know first that it trains.
    waits = recipe.model.lora.start is None
    # Workers that are asked to stop don't make the previews of their last step first: those that go on do it here.
    if (start.step == 0 and not waits) or (
        start.step > 0 and _shows(recipe, start.step) and previews.lacks(start.step)
    ):
        previews.show(start.step)
        report.compared(start.step, previews.means)
    pace = Pace()
    report.phase("first step (warming up)")
    saver = Saver(engine, plan, start, rank, workers)
    first = FirstUpdates(objective.patience, done=start.step > 0)
    stopping = Stopping(recipe.training, start.rule, overruled=plan.overruled)
    guards = Watching(plan, engine, device, report, tracker, start.step)
    for step in guards.away:
        stopping.hold(step)
    # Workers that were lost after a verdict are started again by Ray Train, and have nothing left to do.
    steps = range(0) if start.ended else range(start.step + 1, recipe.training.steps + 1)
    try:
        for step in steps:
            began = time.monotonic()
            values = mean_over_workers({**trainer.step(step), STOP: asked(plan.mailbox, rank)}, device)
            stop = values.pop(STOP) > 0
            clips = gather_over_workers(torch.tensor(trainer.taken(), device=device)).tolist()
            took = time.monotonic() - began
            # Who is asked to stop has no time to wait: guards look at that checkpoint's adapter when it goes on.
            rows = [] if stop else guards.collect(step)
            if tracker and journal:
                logged = {**values, **guards.seconds()}  # of this worker alone, so that no stop rule may go by it
                tracker.log(step, step_charts(logged))
                journal.add(step, {**logged, "clips": clips})
                scores = {judge.name: values[f"score/{judge.name}"] for judge in recipe.reward.judges}
                report.stepped(
                    step,
                    pace=pace.add(took),
                    scores=scores,
                    reward=values["reward"],
                    judge_wait=values["seconds/judge"] / values["seconds/step"],
                )
                if step == start.step + 1 and trainer.first_sent is not None:
                    seen = sights(recipe, plan.pool, trainer.first_sent)
                    tracker.tag(**{f"sees.{judge}": sight for judge, sight in seen.items()})
                    report.say(*(f"judge {judge!r} sees {sight}" for judge, sight in seen.items()))
            if first.watching and values["skipped"] < 1:  # with fp16 a step may be skipped, which moves nothing
                still = first.look(step, engine.gradients())  # on every worker: ZeRO gathers them
                if tracker and still:
                    report.say(f"warning: {still}")
                    tracker.tag(still=still)
            if waits and step == start.step + 1 and not stop and previews.lacks(0):
                previews.show(0)
                report.compared(0, previews.means)
            for row in rows:
                if said := stopping.watch(row):
                    report.say(f"warning: {said}")
                    if tracker:
                        tracker.tag(guards=said)
            verdict = stopping.ask(step, values)
            if verdict:
                report.say(f"step {step} is the last: {verdict.reason}; the adapter of step {verdict.step} is kept")
            last = step == recipe.training.steps or verdict is not None
            if guards.due(step) and not (last or stop):
                guards.begin(step)
                stopping.hold(step)
            if last or (_shows(recipe, step) and not stop):
                previews.show(step)
                report.compared(step, previews.means)
            if last or stop or step % recipe.training.checkpoint_every == 0 or stopping.must_save(step):
                report.phase(f"checkpoint of step {step}")
                if tracker and journal:
                    # Steps are in MLflow before their checkpoint counts, so that a resumed run leaves no gap there.
                    tracker.flush()
                    journal.save()
                saver.save(step, journal.update_best(step) if journal else None, stopping.saved())
            if last or stop:
                break
            report.stepped(step)
        report.phase("writing the last checkpoint")
    finally:
        if tracker:
            tracker.unwatch_machine()
        saver.close()  # after a step that failed too: the checkpoint before it is uploaded to its end
    engine.close()


def _shows(recipe: Recipe, step: int) -> bool:
    """Whether previews are due after a step that is not the last."""
    return bool(recipe.evaluation.every) and step % recipe.evaluation.every == 0
