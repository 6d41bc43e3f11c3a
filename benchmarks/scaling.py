"""One worker and two on this machine's cores, measured; 8 to 64 GPUs, modelled. And where it stops scaling.

    python -m benchmarks.scaling --json workers.json workers --rounds 3 > workers.md
    python -m benchmarks.scaling workers --quick           # one round of four steps
    python -m benchmarks.scaling --json model.json model > model.md
    python -m benchmarks.scaling model --judge-copies 4    # and every other rate

`workers` trains on the menagerie as jobs/finetune.py does, with Ray Train, DeepSpeed and the judge in its actor, in
fp32: the same eight clips a step are made by one worker, which then has all cores, or by two, which share them. Both
compute the same on the same cores, so a ratio of 1 is what to hope for. The runs take turns; figures are medians of
their steps but the first.

`model` needs no GPU and measures nothing: FLOPs, bytes and the adapter's size are counted for the models of
benchmarks/gpu, all rates are assumptions, which it prints. Nothing overlaps in it, so that each part is seen; with
`training.accumulation` above 1 the judge's parts are hidden behind computing until they are as long.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray

from benchmarks.gpu.cases import WORLDS
from benchmarks.machine import in_words, machine
from benchmarks.scaling_model import Cluster, Scaling, counted
from rayvideo.connection import start_ray
from rayvideo.data.latents import prepare_to
from rayvideo.menagerie.clips import training_scenes, write_clips
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.runs.folder import folder_of
from rayvideo.training.launch import finetune

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie.yaml"
CLIPS, BATCH, ALL = 32, 2, 8
"""In the list, in a micro-batch, in a step."""
WORKERS = (1, 2)
GPUS = [8, 16, 32, 64]
FIXED_CLIPS = 64

Steps = list[dict[str, float]]
"""What metrics.jsonl says of each step."""


def overrides(workers: int, steps: int, storage: Path, latents: Path, name: str) -> list[str]:
    """The recipe of a run that only trains."""
    return [
        f"storage={storage}",
        f"tracking.run_name={name}",
        "data.manifest=null",
        f"data.prepared={latents}",
        f"training.workers={workers}",
        f"training.batch_size={BATCH}",
        f"training.accumulation={ALL // BATCH // workers}",
        f"training.steps={steps}",
        f"training.checkpoint_every={steps}",
        "training.warmup_steps=0",
        "training.precision=fp32",
        "evaluation.previews=0",
    ]


def measured(recipe: Recipe) -> Steps:
    """Train, and return the figures of all steps but the first."""
    finetune(recipe)
    lines = Path(folder_of(recipe), "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1:]


def summed_up(found: dict[int, list[Steps]]) -> dict[int, dict[str, float]]:
    """Number of workers -> median seconds of a step, and the median shares that waiting for judges and clips has."""
    table = {}
    for workers, rounds in found.items():
        steps = [step for steps in rounds for step in steps]
        table[workers] = {
            "seconds": median(step["seconds/step"] for step in steps),
            "judge wait": median(step["seconds/judge"] / step["seconds/step"] for step in steps),
            "data wait": median(step["seconds/data"] / step["seconds/step"] for step in steps),
        }
    return table


def ratios(found: dict[int, list[Steps]]) -> dict[str, float]:
    """Figures that don't depend on how fast a machine is; the lower, the better."""
    rows = summed_up(found)
    pairs = zip(found[1], found[2], strict=True)
    seconds = [[median(step["seconds/step"] for step in steps) for steps in pair] for pair in pairs]
    return {
        "a step of two workers / of one": median(two / one for one, two in seconds),
        **{f"judge wait, {workers} workers": rows[workers]["judge wait"] for workers in found},
        **{f"data wait, {workers} workers": rows[workers]["data wait"] for workers in found},
    }


def measure(rounds: int, steps: int) -> dict[int, list[Steps]]:
    """Runs of one worker and of two that take turns, in one Ray."""
    found: dict[int, list[Steps]] = {workers: [] for workers in WORKERS}
    with TemporaryDirectory() as folder:
        listing = write_clips(Path(folder, "clips"), training_scenes(CLIPS, 100), 0.8)
        latents = Path(folder, "latents")
        start_ray(load_recipe(RECIPE), "training", "judges", "data")
        try:
            prepare_to(load_recipe(RECIPE, [f"data.manifest={listing}"]), str(latents))
            for number in range(rounds):
                for workers in WORKERS[:: -1 if number % 2 else 1]:
                    chosen = overrides(workers, steps, Path(folder, "runs"), latents, f"{workers}-{number}")
                    found[workers].append(measured(load_recipe(RECIPE, chosen)))
                    print(f"{workers} workers, round {number}: done", file=sys.stderr, flush=True)
        finally:
            ray.shutdown()
    return found


def workers_table(found: dict[int, list[Steps]]) -> str:
    """Markdown."""
    rows = ["| workers | step, s | of one worker's | waits for the judge | waits for clips |", "|---|---|---|---|---|"]
    table = summed_up(found)
    for workers, row in table.items():
        ratio = ratios(found)["a step of two workers / of one"] if workers == 2 else 1.0
        cells = [f"{row['seconds']:.2f}", f"{ratio:.2f}", f"{row['judge wait']:.1%}", f"{row['data wait']:.1%}"]
        rows.append(f"| {workers} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def run_workers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return everything."""
    about = machine()
    os.chdir(RECIPE.parents[2])
    rounds, steps = (1, 4) if arguments.quick else (arguments.rounds, arguments.steps)
    found = measure(rounds, steps)
    print(f"{in_words(about)} {ALL} clips a step, {rounds} runs of {steps} steps each.\n\n{workers_table(found)}")
    return {"machine": about, "workers": found, "ratios": ratios(found)}


def run_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count, print, and return everything."""
    cluster = Cluster(**{one.name: getattr(arguments, one.name) for one in fields(Cluster)})
    said = ", ".join(f"{name} {value:g}" for name, value in vars(cluster).items())
    print(f"Assumed (seconds, bytes/s, FLOP/s; benchmarks/scaling_model.py says what each is): {said}.")
    models = []
    for world in WORLDS:
        counts = counted(world)
        print(
            f"\n{world.name}, counted: {counts.flops / 1e12:.1f} TFLOP a clip, at the judge "
            f"{counts.judge_flops / 1e12:.2f} and {counts.judge_bytes / 1e6:.1f} MB there and back; latents "
            f"{counts.clip_bytes / 1e6:.2f} MB; an adapter of {counts.adapter / 1e6:.2f} million numbers."
        )
        for clips, fixed in ((counts.batch, False), (FIXED_CLIPS, True)):
            models.append(Scaling(world.name, counts, cluster, clips, fixed))
            print(f"\n{models[-1].table(GPUS)}", flush=True)
    return {"models": [one.as_json(GPUS) for one in models]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    what = parser.add_subparsers(dest="what", required=True)
    own = what.add_parser("workers")
    own.add_argument("--rounds", type=int, default=3)
    own.add_argument("--steps", type=int, default=11, help="of a run; the first is not counted")
    own.add_argument("--quick", action="store_true", help="one round of four steps")
    own.set_defaults(run=run_workers)
    model = what.add_parser("model")
    for one in fields(Cluster):
        kind = int if isinstance(one.default, int) else float
        model.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default)
    model.set_defaults(run=run_model)
    arguments = parser.parse_args()
    figures = arguments.run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
