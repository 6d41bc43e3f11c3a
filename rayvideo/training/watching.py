"""A worker's side of guards: it hands adapters to the actors beside the training, and reads what they found later."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayTaskError
from ray.train.collective import barrier

from rayvideo.errors import UserError
from rayvideo.evaluation.findings import roles
from rayvideo.evaluation.guarding.actors import Adapter
from rayvideo.evaluation.guarding.rows import Figure, Row
from rayvideo.models.lora import WEIGHTS
from rayvideo.runs.checkpoints import CHECKPOINTS, name_of
from rayvideo.runs.news import Reporter
from rayvideo.storage import fetched, is_file, join, read_lines, write_lines
from rayvideo.tracking import Tracker
from rayvideo.tracking.charts import guard_chart
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.plan import Plan

FILE = "guards.jsonl"
SECONDS = "seconds/guards"


class Watching:
    """Lets guards look at the adapter every `evaluation.every` steps, while training goes on.

    What they found of a step is read when they are to look again, before a checkpoint, and after the last step: by the
    step, not by the clock, so that a stop rule decides in the same step on every worker and after every resumption.
    All workers must make the same calls. Without `evaluation.guards` nothing happens.

    Args:
        start: Optimizer steps that are done. Rows of later ones are forgotten; what guards were looking at when the
            workers were lost, they look at again.
        tracker: Of the run, on rank 0, which writes the rows down; other ranks need none.
    """

    def __init__(
        self,
        plan: Plan,
        engine: DeepSpeedEngine,
        device: torch.device,
        report: Reporter,
        tracker: Tracker | None,
        start: int,
    ) -> None:
        self._recipe = plan.recipe
        self._folder = plan.run_folder
        self._guards = plan.guards
        self._engine = engine
        self._device = device
        self._report = report
        self._tracker = tracker
        self._file = join(plan.run_folder, FILE)
        self._waited = 0.0
        self._away: dict[int, Any] = {}
        """Step -> a ref of its row, on rank 0; None on the others."""
        self._rows: dict[int, dict[str, Any]] = {}
        if self._guards is None:
            return
        if tracker:
            self._rows = {line["step"]: line for line in read_lines(self._file) if line["step"] <= start}
            write_lines(self._file, self._rows.values())
        last = start - start % self._recipe.evaluation.every
        # Rows of the newest step may be in the file already; the stop rule may not know of them yet.
        if last and is_file(join(self._checkpoint(last), WEIGHTS)):
            self._away[last] = self._again(last) if tracker else None

    @property
    def away(self) -> list[int]:
        """Steps whose rows are not read yet."""
        return [*self._away]

    def due(self, step: int) -> bool:
        """Whether guards look at the adapter of a step that is not the last."""
        return self._guards is not None and step % self._recipe.evaluation.every == 0

    def begin(self, step: int) -> None:
        """Hand the adapter to the guards."""
        started = time.perf_counter()
        weights = self._engine.adapter()
        self._away[step] = None
        if self._tracker:
            with TemporaryDirectory() as folder:
                self._engine.save_adapter(Path(folder, "adapter"), weights)
                self._away[step] = self._look(step, Path(folder, "adapter"))
        self._waited += time.perf_counter() - started

    def collect(self, step: int) -> list[Row]:
        """The rows that are to be known after a step, by step; waits for them."""
        last = self._guards is not None and step == self._recipe.training.steps
        if last:
            self.begin(step)
        if not self._away or not (last or self.due(step) or step % self._recipe.training.checkpoint_every == 0):
            return []
        started = time.perf_counter()
        self._report.phase(f"guards of step {max(self._away)}")
        lines = [_found(away) for _, away in sorted(self._away.items())] if self._tracker else []
        self._away.clear()
        lines = self._shared(lines)
        self._waited += time.perf_counter() - started
        if self._tracker:
            self._log(lines)
        return [Row.of(line) for line in lines]

    def seconds(self) -> dict[str, float]:
        """What this worker has waited for guards since this was asked last, as a figure of the step."""
        if self._guards is None:
            return {}
        waited, self._waited = self._waited, 0.0
        return {SECONDS: waited}

    def _again(self, step: int) -> Any:
        """A ref of a row that is known, or that is made of a checkpoint's adapter."""
        if step in self._rows:
            return ray.put(self._rows[step])
        with fetched(self._checkpoint(step)) as folder:
            return self._look(step, folder)

    def _look(self, step: int, folder: Path) -> Any:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        return self._guards.look.remote(Adapter(step, files))

    def _checkpoint(self, step: int) -> str:
        return join(self._folder, f"{CHECKPOINTS}/{name_of(step)}/adapter")

    def _shared(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What rank 0 has, on every rank."""
        if dist.get_world_size() == 1:
            return lines
        barrier()  # which has all the time in the world, where torch's broadcast gives up
        box = [json.dumps(lines)]
        dist.broadcast_object_list(box, src=0, device=self._device)
        return list(json.loads(box[0]))

    def _log(self, lines: list[dict[str, Any]]) -> None:
        """Write rows into the run's folder and into MLflow."""
        held_out = {judge for judge, role in roles(self._recipe).items() if role == "held-out"}
        for line in lines:
            if line["step"] not in self._rows:
                self._rows[line["step"]] = line
                row = Row.of(line)
                assert self._tracker is not None
                self._tracker.log(row.step, charts(row, held_out))
        write_lines(self._file, self._rows.values())


def _found(away: Any) -> dict[str, Any]:
    """A row, as JSON; what the user can mend is raised as it was in the actor."""
    try:
        return dict(ray.get(away))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def charts(row: Row, held_out: set[str]) -> dict[str, float]:
    """A row's changes under their names in MLflow: of all sets together with their intervals, and of each set."""
    values: dict[str, float] = {}
    for metric, figure in row.together.items():
        name = guard_chart(None, metric, held_out=held_out)
        values |= {f"{name}{ending}": value for ending, value in _bounds(figure).items() if value is not None}
    for captions, figures in row.sets.items():
        values |= {guard_chart(captions, metric, held_out=held_out): one.change for metric, one in figures.items()}
    return values


def _bounds(figure: Figure) -> Mapping[str, float | None]:
    return {"": figure.change, ".low": figure.low, ".high": figure.high}
