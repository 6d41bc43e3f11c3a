"""One trial: a fine-tuning that a process of its own drives, as jobs/finetune.py would, and what Tune sees of it.

A trial's figures are read from MLflow, where they outlive everything. So a sweep that is started again replays to Tune
what its trials had reached, and goes on.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from rayvideo.errors import Stopped
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs import folder as runs
from rayvideo.storage import is_file, join, read_bytes, write_bytes
from rayvideo.sweep.turn import HEAD, OUTSIDE, Turn, needs
from rayvideo.tracking import Tracker, find_run
from rayvideo.training.line import Line

EVERY_S = 1.0  # between looks at MLflow
WORD_S = 5.0  # after which Tune hears that nothing is new, and can say in turn that the trial is to end
ENDED = "ended.json"  # in the folder of a trial that was ended early: where it stood

STEP, SCORE = "step", "score"
"""What Tune is told of a trial."""


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep."""

    name: str
    """Of its run and its run folder."""
    changes: list[str]
    """Its own overrides."""
    tree: dict[str, Any]
    """Its whole recipe."""
    typed: list[str]
    """All overrides, as one would type them to jobs/finetune.py."""
    metrics: list[str]
    """Names in MLflow of the figures whose mean chooses."""

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.tree)

    @property
    def folder(self) -> str:
        return runs.folder_of(self.recipe)

    def begun(self) -> bool:
        """Whether it has got as far as MLflow."""
        return is_file(join(self.folder, runs.RUN))

    def ended(self) -> dict[str, Any] | None:
        """Step and score at which it was ended early, if it was."""
        file = join(self.folder, ENDED)
        return json.loads(read_bytes(file)) if is_file(file) else None

    def end(self, step: int, score: float) -> None:
        """Write down that it is ended early, so that the sweep does not go on with it when it is started again."""
        write_bytes(join(self.folder, ENDED), json.dumps({STEP: step, SCORE: score}).encode())

    def finished(self) -> bool:
        """Whether its product is there."""
        return bool(runs.known(self.folder).get("finished"))

    def tracker(self) -> Tracker | None:
        """Its run in MLflow, once it has got as far as that."""
        if not self.begun():
            return None
        run_id = json.loads(read_bytes(join(self.folder, runs.RUN)))["run_id"]
        return Tracker(find_run(self.recipe, run_id))

    def curve(self, tracker: Tracker | None) -> dict[int, float]:
        """Training step -> score, as far as it has come; without step 0, where all trials are the base."""
        scores = tracker.curve(self.metrics) if tracker else {}
        return {step: score for step, score in scores.items() if step}


class Running(tune.Trainable):
    """What Tune runs: reports a trial's figures, those of an earlier start first, and ends it when Tune says so.

    Args (of `setup`):
        config: {"trial": number}.
        trials: All trials of the sweep.
    """

    def setup(self, config: dict[str, Any], trials: list[Trial]) -> None:
        self._trial = trials[config["trial"]]
        self._line = Line()
        self._reported = 0  # the newest step that Tune knows of
        self._ref: Any = None
        self._tracker: Tracker | None = None
        self._done = self._trial.finished() or self._trial.ended() is not None

    def step(self) -> dict[str, Any]:
        """Return the next figure, or after a while none."""
        until = time.monotonic() + WORD_S
        while True:
            over = self._done or self._ended()
            self._tracker = self._tracker or self._trial.tracker()
            for step, score in self._trial.curve(self._tracker).items():
                if step > self._reported:
                    self._reported = step
                    return {STEP: step, SCORE: score}
            if over:
                return {"done": True}
            if self._ref is None:
                self._ref = drive.remote(self._trial, self._line)
            elif time.monotonic() > until:
                return {}
            time.sleep(EVERY_S)

    def cleanup(self) -> None:
        """Called at the trial's end: what still trains saves its state first."""
        if self._ref is not None and not self._done:
            self._line.mailbox.ask()
            ray.wait([self._ref])  # what it failed of is of no concern any more
            self._line.mailbox.clear()

    def _ended(self) -> bool:
        """Whether the training is over; raises what it failed of."""
        if self._ref is not None and ray.wait([self._ref], timeout=0)[0]:
            ray.get(self._ref)
            self._done = True
        return self._done


@ray.remote(num_cpus=0, resources=HEAD, max_retries=0, scheduling_strategy=OUTSIDE)
def drive(trial: Trial, line: Line) -> None:
    """Fine-tune a trial, or go on with it, in a process of its own.

    Raises:
        UserError: as `finetune` says.
    """
    # Tune's process, which imports this file too, does without what trains.
    from rayvideo.training import preflight
    from rayvideo.training.launch import finetune, parts_of

    recipe, resume = trial.recipe, trial.begun()
    preflight.check(recipe, resume=resume)
    preflight.check_place(recipe, resume=resume)
    with Turn("rayvideo-sweep", needs(recipe, parts_of(recipe)), lambda: line.board.read().step is not None):
        try:
            finetune(recipe, resume=resume, typed=trial.typed, line=line)
        except Stopped:
            return
