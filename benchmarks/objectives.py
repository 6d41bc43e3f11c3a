"""The paper's Table 1 on the menagerie: every objective with the same training time, in one process without Ray.

    python -m benchmarks.objectives --out runs/objectives --minutes 5 --seeds 2 --captions 16 > table.md

Prints Markdown: methods × caption sets, the base first; each judge's mean score (the training judge is what was trained
on, the others never were), ± the standard deviation over training seeds, and the gain over the base in standard
deviations σ of the base's clips; then each run's gain over all clips ± its standard error. All methods are evaluated on
the same captions and noise, and train on the same clips or their captions. Each run leaves its scores and a picture of
its clips in --out; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks.arms import Arm, Result, run
from rayvideo.paths import path_argument
from rayvideo.recipe import load_recipe
from rayvideo.settling import settle

RECIPE = Path(__file__).parents[1] / "jobs/recipes/menagerie.yaml"
BASE = "base"
METHODS: dict[str, list[str]] = {
    "DDPO": [
        "training.objective=ddpo",
        "training.batch_size=16",
        "training.samples_per_caption=16",
        "training.lr=1e-3",
        "training.warmup_steps=0",
        "training.ddpo.updates=1",
        "training.ddpo.learned_steps=2",
        "editing.steps=5",
        "editing.guidance=1",
        "data.frames=4",
    ],
    "RWR": [
        "training.objective=rwr",
        "training.rwr.samples=data",
        "training.batch_size=16",
        "training.lr=2e-3",
        "training.warmup_steps=0",
        "training.rwr.temperature=0.3",
        "training.rwr.updates=1",
    ],
    "DRaFT-2": ["training.objective=draft"],
    "DRaFT-LV": ["training.objective=draft", "editing.grad_steps=1", "training.draft.noisings=2"],
    "InstructVideo": ["training.objective=reward"],
}
"""Name -> what it changes in the recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_argument, required=True, help="folder of results and pictures")
    parser.add_argument("--minutes", type=float, required=True, help="training time of each run")
    parser.add_argument("--seeds", type=int, default=2, help="training runs per method")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--add", nargs=2, action="append", default=[], metavar=("NAME", "OVERRIDES"), help="a method of your own"
    )
    parser.add_argument("--clips", type=int, default=160, help="clips to train on")
    parser.add_argument("--captions", type=int, help="captions of each set (default: all)")
    parser.add_argument("--recipe", type=path_argument, default=RECIPE)
    parser.add_argument("overrides", nargs="*", help="key=value, for every method; give them before the options")
    arguments = parser.parse_args()

    chosen = {name: METHODS[name] for name in METHODS if name in arguments.methods}
    chosen |= {name: overrides.split() for name, overrides in arguments.add}
    runs = [
        (
            name,
            settle(
                load_recipe(arguments.recipe, ["training.workers=1", *changes, *arguments.overrides, f"seed={seed}"]),
                "training",
            ),
        )
        for seed in range(arguments.seeds)
        for name, changes in {BASE: [], **chosen}.items()
        if name != BASE or seed == 0
    ]
    arms = [Arm(name, recipe, 0 if name == BASE else 60 * arguments.minutes) for name, recipe in runs]
    results = run(arms, arguments.out, clips=arguments.clips, captions=arguments.captions)
    print(f"{arguments.minutes:g} min of training each, {arguments.seeds} seeds, {torch.get_num_threads()} threads.\n")
    _print(results)


def _print(results: list[Result]) -> None:
    base = next(result for result in results if result.arm == BASE)
    for judge, of_base in base.scores.items():
        print(f"| {judge} | " + " | ".join(of_base) + " | each run | steps |\n|---|" + "---|" * (len(of_base) + 2))
        for method in dict.fromkeys(result.arm for result in results):
            runs = [result for result in results if result.arm == method]
            cells = [_cell([run.scores[judge][name] for run in runs], of_base[name]) for name in of_base]
            gains = ", ".join(_gain(run.scores[judge], of_base) for run in runs if run is not base)
            print(f"| {method} | " + " | ".join(cells) + f" | {gains} | {', '.join(str(run.steps) for run in runs)} |")
        print()


def _cell(runs: list[list[float]], base: list[float]) -> str:
    """Mean over runs ± their deviation, and how far above the base's in standard deviations of the base's clips.

    For the base itself that deviation.
    """
    means = [statistics.fmean(scores) for scores in runs]
    if runs == [base]:
        return f"{means[0]:.3f} (σ = {statistics.stdev(base):.3f})"
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    gain = (statistics.fmean(means) - statistics.fmean(base)) / statistics.stdev(base)
    return f"{statistics.fmean(means):.3f}{spread} ({gain:+.2f} σ)"


def _gain(run: dict[str, list[float]], base: dict[str, list[float]]) -> str:
    """Mean gain over all clips ± its standard error, each clip against the base's in σ of its set."""
    gains = [
        (after - before) / statistics.stdev(base[name])
        for name in base
        for after, before in zip(run[name], base[name], strict=True)
    ]
    return f"{statistics.fmean(gains):+.2f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
