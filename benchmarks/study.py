"""The paper's ablations on the menagerie: each question's arms with the same training time, and what came of them.

    python -m benchmarks.study jobs/recipes/study/*.yaml --out runs/study > runs/study/study.md

In one process without Ray, one thread: clips are drawn, every arm trains, then makes clips for captions that it was not
trained on. Prints Markdown; a figure of each question and pictures of all clips lie in --out. Runs that are there are
not repeated, so that an interrupted study goes on. Gains are of pairs of one caption and seed, all sets together;
intervals (95 %) are over captions, not over training seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.arms import Arm, Result, run
from rayvideo.evaluation.paired import Estimate, Pairs, change, difference
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.paths import path_argument
from rayvideo.recipe import load_recipe
from rayvideo.settling import settle

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie.yaml"
BASE = "base"
COMMON = ["training.workers=1", "training.precision=fp32"]
JUDGES = ("judge", "held_out")


class StudyArm(BaseModel):
    """One answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overrides: tuple[str, ...] = ()
    """Of jobs/recipes/menagerie.yaml."""
    degraded: float = Field(0.8, ge=0, le=1)
    """Share of the clips to train on that are degraded; the model itself learned from 0.8."""


class Study(BaseModel):
    """A question, as a file of jobs/recipes/study/ asks it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    paper: str
    """What the paper says of it."""
    minutes: float = Field(gt=0)
    """Of training, for each arm and seed."""
    arms: dict[str, StudyArm]

    @classmethod
    def read(cls, file: Path) -> Study:
        return cls.model_validate(yaml.safe_load(file.read_text()))

    def runs(self, seeds: int) -> list[Arm]:
        """The base, and each arm with each training seed."""
        base = Arm(BASE, settle(load_recipe(RECIPE, COMMON), "training"), seconds=0)
        return [
            base,
            *(
                Arm(name, recipe, 60 * self.minutes, degraded=arm.degraded)
                for seed in range(seeds)
                for name, arm in self.arms.items()
                for recipe in [settle(load_recipe(RECIPE, [*COMMON, *arm.overrides, f"seed={seed}"]), "training")]
            ),
        ]


def pairs_of(base: Result, runs: Sequence[Result], metric: str, captions: dict[str, list[str]]) -> Pairs:
    """A metric of all runs' clips beside the base's; judges' in standard deviations of their set's base clips."""
    names, before, after = [], [], []
    for result in runs:
        for name, values in base.scores[metric].items():
            unit = statistics.stdev(values) if metric in JUDGES else 1.0
            names += [f"{name}: {caption}" for caption in captions[name][: len(values)]]
            before += [value / unit for value in values]
            after += [value / unit for value in result.scores[metric][name]]
    return Pairs(tuple(names), np.array(before), np.array(after))


def table(study: Study, results: Sequence[Result], captions: dict[str, list[str]]) -> str:
    """Markdown: an arm a row."""
    base = results[0]
    lines = [
        "| | steps | s a step | judge, σ | held-out judge, σ | right kinds | motion | flicker |",
        "|---" * 8 + "|",
    ]
    for name in study.arms:
        runs = [result for result in results if result.arm == name]
        found = {metric: pairs_of(base, runs, metric, captions) for metric in base.scores}
        kinds = difference(found["right_kind"]).over(0.01)
        cells = [
            ", ".join(str(result.steps) for result in runs),
            f"{sum(result.seconds for result in runs) / sum(result.steps for result in runs):.2f}",
            *(difference(found[judge]).text("+.2f") for judge in JUDGES),
            kinds.text("+.1f", " points"),
            *(_shown(change(found[measure])) for measure in ("motion", "flicker")),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(changed: Estimate | None) -> str:
    return "-" if changed is None else changed.text("+.0%")


def figure(study: Study, results: Sequence[Result], captions: dict[str, list[str]], file: Path) -> None:
    """Both judges' gains of each arm with their intervals."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the back end was chosen

    shown, axes = pyplot.subplots(figsize=(7, 0.5 * len(study.arms) + 1.3), layout="constrained")
    for judge, offset, mark, colour in (("judge", -0.12, "o", "#888888"), ("held_out", 0.12, "D", "#0b62d6")):
        for row, name in enumerate(study.arms):
            runs = [result for result in results if result.arm == name]
            gain = difference(pairs_of(results[0], runs, judge, captions))
            low, high = (gain.value if bound is None else bound for bound in gain[1:])
            label = {"judge": "judge that trained it", "held_out": "held-out judge"}[judge] if row == 0 else None
            axes.errorbar(
                gain.value,
                row + offset,
                xerr=[[gain.value - low], [high - gain.value]],
                fmt=mark,
                color=colour,
                capsize=3,
                label=label,
            )
    axes.set_yticks(range(len(study.arms)), list(study.arms))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("gain over the base, σ of its clips")
    axes.legend(frameon=False, fontsize="small")
    shown.savefig(file, dpi=110)
    pyplot.close(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=path_argument, help="files of jobs/recipes/study/")
    parser.add_argument("--out", type=path_argument, required=True, help="folder of results, figures and pictures")
    parser.add_argument("--seeds", type=int, default=2, help="training runs of each arm")
    parser.add_argument("--captions", type=int, default=16, help="of each set")
    parser.add_argument("--clips", type=int, default=160, help="clips to train on")
    parser.add_argument("--minutes", type=float, default=math.inf, help="train no run longer than that")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    studies = {Path(file).stem: Study.read(Path(file)) for file in arguments.studies}
    captions = evaluation_captions()
    for name, study in studies.items():
        study = study.model_copy(update={"minutes": min(study.minutes, arguments.minutes)})
        print(name, file=sys.stderr, flush=True)
        folder = arguments.out / name
        results = run(study.runs(arguments.seeds), folder, clips=arguments.clips, captions=arguments.captions)
        figure(study, results, captions, arguments.out / f"{name}.png")
        print(f"## {study.question}\n\nThe paper: {study.paper} {study.minutes:g} minutes of training each.\n")
        print(table(study, results, captions) + f"\n\n![{study.question}](images/study-{name}.png)\n", flush=True)


if __name__ == "__main__":
    main()
