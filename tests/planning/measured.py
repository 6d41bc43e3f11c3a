"""Plans against what the CPU's allocator hands out, in a process of its own: DeepSpeed keeps the first group it meets.

    python -m tests.planning.measured FOLDER

Prints {setting: [bytes planned, bytes measured]} as JSON, of the menagerie's real trainer, judge and DeepSpeed engine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from rayvideo.menagerie.latents import drawn_table
from rayvideo.models import load_model
from rayvideo.planning.estimate import Rates, estimate
from rayvideo.planning.rehearsal import rehearse
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.serving.local import LocalPool
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine

RECIPE = Path(__file__).parents[2] / "jobs/recipes/menagerie.yaml"
SHORT = ["editing.steps=4", "training.workers=1", "training.precision=fp32", "training.zero_stage=0"]
SETTINGS = {
    "no checkpoints": ["model.checkpointing=none", "training.batch_size=1"],
    "blocks": ["model.checkpointing=blocks", "training.batch_size=2", "editing.grad_steps=1"],
    "blocks and steps, K = 2": ["model.checkpointing=both", "training.batch_size=2", "editing.grad_steps=2"],
    "two graphs alive": ["model.checkpointing=blocks", "training.batch_size=1", "training.accumulation=2"],
    "frame by frame": ["model.checkpointing=none", "reward.decode=frame_by_frame", "training.batch_size=1"],
    "DRaFT": ["training.objective=draft", "model.checkpointing=blocks", "training.batch_size=1"],
    "RWR": ["model.checkpointing=none", "training.objective=rwr", "training.batch_size=2"],
}


def main(folder: Path) -> None:
    """Measure every setting."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    found = {}
    recipes = {name: load_recipe(str(RECIPE), [*SHORT, *setting]) for name, setting in SETTINGS.items()}
    planned = {name: moving(recipe) for name, recipe in recipes.items()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    table = drawn_table(load_model(recipes["blocks"].model.path), 4, folder)
    for name, recipe in recipes.items():
        step = trainer_of(recipe, table).step
        step(1)  # whatever is made once
        found[name] = planned[name], allocated(lambda step=step: step(2))  # type: ignore[misc]
    dist.destroy_process_group()
    print(json.dumps(found))


def moving(recipe: Recipe) -> int:
    """Bytes that come and go in a step, by plan."""
    worker = estimate(recipe, rehearse(recipe), Rates(1e12, "given")).worker
    return worker["activations"] + worker["decode window"]


def trainer_of(recipe: Recipe, table: Any) -> Any:
    def engine(adapted: Any, objective: Any) -> DeepSpeedEngine:
        return DeepSpeedEngine(adapted, recipe.training, objective.passes)

    return assemble(recipe, table, LocalPool(recipe.reward.judges), torch.device("cpu"), engine).trainer


def allocated(run: Callable[[], object]) -> int:
    """Most bytes that the CPU's allocator had handed out at once beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


if __name__ == "__main__":
    main(Path(sys.argv[1]))
