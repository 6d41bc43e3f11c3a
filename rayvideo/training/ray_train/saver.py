"""What one worker does for checkpoints: it uploads them while training goes on, and loads the newest good one."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from tempfile import gettempdir
from threading import Event
from typing import Any, NamedTuple

import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from safetensors.torch import load_file
from torch import Tensor

from rayvideo.models.lora import WEIGHTS
from rayvideo.recipe import shareable
from rayvideo.runs.attempts import begin_attempt
from rayvideo.runs.checkpoints import (
    CHECKPOINTS,
    STATE,
    CheckpointError,
    Part,
    name_of,
    newest_good,
    put_away,
    upload,
)
from rayvideo.runs.journal import Best
from rayvideo.runs.verdict import RuleState, verdict_of
from rayvideo.storage import fetched, join, locate
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.guards import NonFiniteError
from rayvideo.training.plan import Plan
from rayvideo.training.rng import load_rng, save_rng

DEEPSPEEDS = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes of which DeepSpeed's shards hold objects, beside tensors and plain values."""


class Start(NamedTuple):
    """What all workers agree to go on from."""

    step: int
    """Optimizer steps that are done."""
    attempt: int
    """Which start of workers this is in the run's life, from 1."""
    token: str
    """Random text in the indices of this attempt's checkpoints, which tells them from those of any other."""
    by_others: bool
    """Whether another number of workers wrote what they go on from."""
    said: str
    """Step, workers, reason and refused checkpoints, in words."""
    rule: dict[str, Any] | None
    """What the recipe's stop rule remembered after that step; None at the beginning, or without a rule."""
    ended: bool
    """Whether a verdict ended the run after that step, so that there is nothing left to do."""


def agree(plan: Plan, rank: int, workers: int) -> Start:
    """Rank 0 chooses the newest good checkpoint, frees the names of newer ones, and tells the other workers.

    Raises:
        CheckpointError: on rank 0; all checkpoints are damaged or of another run.
    """
    start: tuple[Any, ...] | None = None
    if rank == 0:
        good, refused = newest_good(plan.run_folder, plan.tracking.run_id)
        put_away(plan.run_folder, refused)
        step = good.step if good else 0
        reasons = [one.why for one in refused]
        attempt = begin_attempt(plan.run_folder, plan.call_id, plan.start_reason, step, workers, reasons)
        state = good.state if good else {}
        ended = verdict_of(state, plan.recipe.training.steps) is not None and not plan.overruled
        # A plain tuple, because it goes through an actor of Ray Train. To read a `Start`, that would import this file,
        # and torch with it.
        by_others = bool(state) and state["workers"] != workers
        token = uuid.uuid4().hex[:8]
        start = (step, attempt.number, token, by_others, str(attempt), state.get("stop_rule"), ended)
    return Start(*broadcast_from_rank_zero(start))


def load(engine: DeepSpeedEngine, plan: Plan, start: Start, rank: int, workers: int) -> Best | None:
    """Bring a worker to where `start` says, and return the best checkpoint so far."""
    if start.step == 0:
        return None
    with fetched(join(plan.run_folder, f"{CHECKPOINTS}/{name_of(start.step)}")) as folder:
        state = json.loads((folder / STATE).read_text())
        refuse_code(folder, name_of(start.step))
        engine.load(folder)
        require_same(engine.adapter(), load_file(folder / "adapter" / WEIGHTS), name_of(start.step))
        if state["workers"] == workers:
            load_rng(folder / _rng_file(rank))
    return Best(**state["best"]) if state["best"] else None


def require_same(loaded: dict[str, Tensor], saved: dict[str, Tensor], name: str) -> None:
    """Refuse to go on with another adapter than was saved: DeepSpeed passes over tensors that find no place."""
    for key, weight in loaded.items():
        # fp16 weights that were read back are rounded
        if not torch.allclose(weight, saved[key.replace(".default.", ".")], rtol=1e-2, atol=1e-8):
            raise CheckpointError(f"{name}: the optimizer's file holds other weights {key} than its adapter")


def refuse_code(folder: Path, name: str) -> None:
    """Raise `CheckpointError` if loading one of a checkpoint's files would call anything but what DeepSpeed's need.

    DeepSpeed unpickles its shards without `weights_only`, so whoever can write into a bucket could run code here.
    """
    for file in sorted(folder.rglob("*.pt")):
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - DEEPSPEEDS
        if unknown:
            raise CheckpointError(
                f"{name}: {file.relative_to(folder)} holds objects that a checkpoint has no use for, and may run code: "
                f"{sorted(unknown)}; don't load it, and find out who wrote it"
            )


class Saver:
    """Writes checkpoints of one worker; each is uploaded while training goes on, one at a time.

    Ray Train waits for the last one at the end of the loop. All workers must save equally often.
    """

    def __init__(self, engine: DeepSpeedEngine, plan: Plan, start: Start, rank: int, workers: int) -> None:
        self._engine = engine
        self._plan = plan
        self._start = start
        self._rank = rank
        self._workers = workers
        self._uploaded = Event()
        self._uploaded.set()
        # The same folder whenever this rank starts, so that workers that are killed leave one behind at most.
        self._folder = Path(gettempdir(), f"rayvideo-{plan.tracking.run_id}-{rank}")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)

    def save(self, step: int, best: Best | None = None, rule: RuleState | None = None) -> None:
        """Write everything that a run needs to go on after `step`, and begin to upload it.

        Args:
            best: The best checkpoint so far, on rank 0, which may be this one.
            rule: What `Stopping.saved` says of the run's stop rule.

        Raises:
            NonFiniteError: the adapter holds NaN or Inf.
        """
        self.wait()
        weights = self._engine.adapter()
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise NonFiniteError(f"step {step}: NaN or Inf in the adapter's weights {name}")
        folder = self._folder / name_of(step)
        folder.mkdir()
        self._engine.save(folder)
        save_rng(folder / _rng_file(self._rank))
        if self._rank == 0:
            self._engine.save_adapter(folder / "adapter", weights)
            (folder / STATE).write_text(json.dumps(self._state(step, best, rule), indent=2))
        self._uploaded.clear()
        try:
            ray.train.report(
                {"step": step, "best": best.step if best else None, "keep": rule.keep if rule else ()},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=name_of(step),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=self._upload,
                delete_local_checkpoint_after_upload=False,  # `_upload` does, so that `close` need not wait for Ray
            )
        except BaseException:
            self._uploaded.set()  # or `wait` would wait for an upload that never began
            raise

    def wait(self) -> None:
        """Return when this worker's part of the newest checkpoint is in the run's storage, or failed to get there."""
        self._uploaded.wait()

    def close(self) -> None:
        """Wait for the upload, and leave no files on this machine."""
        self.wait()
        shutil.rmtree(self._folder)

    def _state(self, step: int, best: Best | None, rule: RuleState | None) -> dict[str, object]:
        recipe = self._plan.recipe
        return {
            "step": step,
            "workers": self._workers,
            "global_batch": recipe.training.global_batch,
            "attempt": self._start.attempt,
            "best": best._asdict() if best else None,
            "stop_rule": rule.state if rule else None,
            "verdict": rule.verdict._asdict() if rule and rule.verdict else None,
            "overruled": self._plan.overruled,
            "mlflow": self._plan.tracking.shareable(),
            "recipe": shareable(recipe),
        }

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        target = join(self._plan.run_folder, f"{CHECKPOINTS}/{name}")
        step = int(name.rpartition("-")[2])
        part = Part(self._plan.tracking.run_id, self._start.token, step, self._rank, self._workers)
        try:
            upload(Path(checkpoint.path), target, part)
            shutil.rmtree(checkpoint.path)
        finally:
            self._uploaded.set()
        filesystem, inner = locate(target)
        return ray.train.Checkpoint(inner, filesystem)


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.pt"
