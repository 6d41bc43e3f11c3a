"""One optimizer step: as the release of InstructVideo makes it, and as rayvideo does. CPU, menagerie, fp32, one thread.

    python -m benchmarks.step --rounds 7 --json step.json > step.md
    python -m benchmarks.step --quick                      # four of the ways, two rounds

D = 20, the last 12 steps, K = 1, two clips. All ways take turns in one process, each round in another order, so that
other work on the machine hits all of them alike; times are medians of ratios within a round. Memory is measured once
for each way: `peak` is all tensors that are alive at once beyond the weights, `kept` the most that autograd holds.

The release's step is made of this package's parts in the release's order: clips and captions are encoded again in
every step, guidance is two calls, all frames are decoded one by one, the judge's own weights get gradients, checkpoints
are nested (the step, and in it the blocks, also the decoder's), and an average of every weight is kept. The "release,
but" lines leave out one of these each; the "rayvideo" lines are this package's trainer with its DeepSpeed engine and a
judge in process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from benchmarks.arms import in_process
from benchmarks.live import Kept, LiveBytes
from benchmarks.machine import in_words, machine
from benchmarks.release import ReleaseTrainer, Ways
from rayvideo.menagerie.build import training_clips
from rayvideo.menagerie.latents import drawn_table
from rayvideo.models import load_model
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.settling import settle

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie.yaml"
PAPER = (
    "editing.steps=20",
    "editing.grad_steps=1",
    "training.workers=1",
    "training.accumulation=1",
    "training.precision=fp32",
    "training.zero_stage=0",
)
SOLVER = ("editing.rollout_solver=dpmsolver++", "editing.rollout_steps=4")
INTERVAL = "editing.guidance_interval=[0.3,0.7]"
OURS = {
    "rayvideo, checkpointing none": ["model.checkpointing=none"],
    "rayvideo, checkpointing blocks": ["model.checkpointing=blocks"],
    "rayvideo, checkpointing both": ["model.checkpointing=both"],
    "rayvideo, checkpointing clips": ["model.checkpointing=clips"],
    "rayvideo, clips and frames one by one": ["model.checkpointing=clips", "reward.decode=frame_by_frame"],
    "rayvideo, none, dpmsolver++ in 4": ["model.checkpointing=none", *SOLVER],
    "rayvideo, none, guidance from .3 to .7": ["model.checkpointing=none", INTERVAL],
    "rayvideo, none, both of these": ["model.checkpointing=none", *SOLVER, INTERVAL],
}
RELEASE = "release"
QUICK = (RELEASE, *(f"rayvideo, checkpointing {name}" for name in ("none", "blocks", "clips")))
CLIPS, BATCH = 8, 2
MIB = 2**20

Step = Callable[[int], object]
"""Makes one optimizer step of this number."""


def our_step(overrides: Sequence[str], folder: Path) -> Step:
    """A step of the trainer with a recipe's settings."""
    recipe: Recipe = settle(load_recipe(RECIPE, [*PAPER, *overrides]), "training")
    folder.mkdir()
    table = drawn_table(load_model(recipe.model.path), CLIPS, folder)
    trainer = in_process(recipe, table).trainer
    return lambda number: trainer.step(number + 1)


def ways() -> dict[str, Ways]:
    """The release, and the release without one of its ways each, and without any."""
    whole = Ways()
    names = [field.name for field in fields(Ways)]
    said = {
        "encodes_again": "clips and captions encoded once",
        "two_calls": "guidance in one call",
        "decodes_all": "only the judged frames decoded",
        "tunes_judge": "judge frozen",
        "nested": "no checkpoints",
        "averages": "no average of the weights",
    }
    return {
        RELEASE: whole,
        **{f"release, but {said[name]}": replace(whole, **{name: False}) for name in names},
        "release, but all of these": Ways(*[False] * len(names)),
    }


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's step in every round but the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        order = list(steps)
        random.Random(number).shuffle(order)
        for name in order:
            began = time.perf_counter()
            steps[name](number)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def memory(step: Step) -> tuple[float, float]:
    """MiB of a step, measured in its second run: tensors alive at once beyond those before it, and kept by autograd."""
    step(0)
    alive, kept = LiveBytes(), Kept()
    with alive:
        step(1)
    with kept:
        step(2)
    return alive.peak / MIB, kept.most / MIB


def summed_up(seconds: dict[str, list[float]], sizes: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """A row for each way."""
    first = seconds[RELEASE]
    return {
        name: {
            "seconds": statistics.median(each),
            "of the release": statistics.median(a / b for a, b in zip(each, first, strict=True)),
            "peak MiB": sizes[name][0],
            "kept MiB": sizes[name][1],
        }
        for name, each in seconds.items()
    }


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Figures of ours against the release's; the lower, the better."""
    found = {}
    for name, row in rows.items():
        if name in OURS:
            found[f"{name}: time"] = row["of the release"]
            found[f"{name}: peak memory"] = row["peak MiB"] / rows[RELEASE]["peak MiB"]
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    base = rows[RELEASE]
    lines = ["| step | s | of the release's | peak, MiB | of the release's | kept, MiB | of the release's |"]
    lines.append("|---" * 7 + "|")
    for name, row in rows.items():
        cells = [f"{row['seconds']:.2f}", f"{row['of the release']:.2f}"]
        for key in ("peak MiB", "kept MiB"):
            cells += [f"{row[key]:.0f}", f"{row[key] / base[key]:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="after one that warms up")
    parser.add_argument("--quick", action="store_true", help=f"two rounds of {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    chosen = QUICK if arguments.quick else (*ways(), *OURS)
    rounds = 2 if arguments.quick else arguments.rounds
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        clips, captions = training_clips(CLIPS, seed=100)
        steps: dict[str, Step] = {
            name: our_step(OURS[name], Path(folder, str(number)))
            if name in OURS
            else ReleaseTrainer(clips, captions, ways()[name], batch=BATCH).step
            for number, name in enumerate(chosen)
        }
        seconds = measure(steps, rounds)
        rows = summed_up(seconds, {name: memory(step) for name, step in steps.items()})
        dist.destroy_process_group()
    if arguments.json:
        figures = {"machine": about, "rows": rows, "ratios": ratios(rows)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{in_words(about)} Medians of {rounds} rounds.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
