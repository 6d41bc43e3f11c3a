"""How long until fresh clips reach a held-out score: rayvideo, its fast options, DRaFT, and the release's trainer.

    python -m benchmarks.reward_per_second --out runs/reward-per-second --minutes 5 > table.md

In one process on the menagerie, fp32: clips and settings of jobs/recipes/menagerie.yaml (D = 10, K = 2, four clips a
step). The ways take turns of some seconds each, so that other work on the machine hits all of them alike. A way's clock
runs only while it trains. After each turn its model makes clips for captions that it was not trained on, and the
held-out judge scores them. Prints Markdown: the training seconds at which the held-out gain reaches the goal, in σ of
the base's clips, between two evaluations by a straight line; and what each way has gained with both judges in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.arms import in_process
from benchmarks.machine import in_words, machine
from benchmarks.release import ReleaseTrainer
from rayvideo.data.table import LatentTable
from rayvideo.evaluation.generate import embed_captions, generate_clips
from rayvideo.menagerie.build import WEIGHTS, training_clips
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.latents import drawn_table
from rayvideo.menagerie.quality import score, sheet
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.models import VideoModel, load_model
from rayvideo.paths import path_argument
from rayvideo.recipe import load_recipe
from rayvideo.settling import settle

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie.yaml"
LR = 3e-4
FIXED = [
    "training.workers=1",
    "training.batch_size=4",
    "training.accumulation=1",
    "training.precision=fp32",
    "training.warmup_steps=0",
    f"training.lr={LR}",
]
SOLVER = ["editing.rollout_solver=dpmsolver++", "editing.rollout_steps=2"]
INTERVAL = ["editing.guidance_interval=[0.3,0.7]"]
REUSE = ["editing.reuse=2"]
RELEASE = "release"
OURS: dict[str, list[str]] = {
    "rayvideo": [],
    "dpmsolver++ in 2 steps": SOLVER,
    "guidance from .3 to .7": INTERVAL,
    "reuse: 2": REUSE,
    "all three": [*SOLVER, *INTERVAL, *REUSE],
    "DRaFT-2": ["training.objective=draft"],
}


@dataclass
class Way:
    """A trainer, its model, and how it did so far."""

    model: VideoModel
    step: Callable[[int], object]
    steps: int = 0
    seconds: float = 0.0
    scores: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """Training seconds, and each judge's mean gain in σ."""

    def train(self, budget: float) -> None:
        """For so many seconds, and to the end of the step that then runs."""
        began = time.perf_counter()
        while time.perf_counter() - began < budget:
            self.step(self.steps)
            self.steps += 1
        self.seconds += time.perf_counter() - began


def ours(overrides: list[str], table: LatentTable) -> Way:
    """The trainer of a recipe, with judges in process."""
    recipe = settle(load_recipe(RECIPE, [*FIXED, *overrides]), "training")
    model, _, _, _, trainer = in_process(recipe, table)
    return Way(model, lambda number: trainer.step(number + 1))


def release(clips: Tensor, captions: list[str]) -> Way:
    """The release's trainer at the same setting."""
    trainer = ReleaseTrainer(clips, captions, steps=10, grad_steps=2, batch=4, lr=LR)
    return Way(trainer.model, trainer.step)


def reached(scores: list[tuple[float, float]], goal: float) -> float | None:
    """Seconds at which the gain first reaches the goal, by a straight line between two evaluations; None: never."""
    before = (0.0, 0.0)
    for now in scores:
        if now[1] >= goal:
            return before[0] + (now[0] - before[0]) * (goal - before[1]) / (now[1] - before[1])
        before = now
    return None


def table_of(ways: Mapping[str, Way], goal: float) -> str:
    """Markdown."""
    lines = [f"| way | s to +{goal:g} σ held-out | of the release's | s a step | judge, σ | held_out, σ |"]
    lines.append("|---" * 6 + "|")
    times = {name: reached([(at, of["held_out"]) for at, of in way.scores], goal) for name, way in ways.items()}
    first = times.get(RELEASE)
    for name, way in ways.items():
        at, last = times[name], way.scores[-1][1]
        share = "-" if at is None or first is None else f"{at / first:.2f}"
        shown = f"> {way.seconds:.0f}" if at is None else f"{at:.0f}"
        pace = way.seconds / way.steps
        lines.append(f"| {name} | {shown} | {share} | {pace:.2f} | {last['judge']:+.2f} | {last['held_out']:+.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_argument, required=True, help="folder for figures and pictures")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each way")
    parser.add_argument("--turns", type=int, default=10, help="evaluations in that time")
    parser.add_argument("--goal", type=float, default=0.5, help="held-out gain, in σ of the base's clips")
    parser.add_argument("--captions", type=int, default=24)
    parser.add_argument("--ways", nargs="+", choices=[RELEASE, *OURS], default=[RELEASE, *OURS])
    arguments = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    captions = evaluation_captions()["in_domain"][: arguments.captions]
    judges = {name: load_judge(WEIGHTS / name) for name in ("judge", "held_out")}
    base = load_model(WEIGHTS / "pipeline")
    embeddings = embed_captions(base, captions)

    def clips_of(model: VideoModel) -> Tensor:
        return generate_clips(
            model,
            captions,
            [0] * len(captions),
            steps=8,
            guidance=3.0,
            frames=16,
            height=64,
            width=64,
            embeddings=embeddings,
        )

    arguments.out.mkdir(parents=True, exist_ok=True)
    before = {name: score(judge, clips, captions) for clips in [clips_of(base)] for name, judge in judges.items()}
    clips, names = training_clips(160, seed=100)
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        table = drawn_table(base, len(clips), Path(folder))
        ways = {name: release(clips, names) if name == RELEASE else ours(OURS[name], table) for name in arguments.ways}
        for turn in range(arguments.turns):
            for name, way in ways.items():
                way.train(60 * arguments.minutes / arguments.turns)
                made = clips_of(way.model)
                after = {judge: score(one, made, captions) for judge, one in judges.items()}
                gains = {j: ((after[j].mean() - before[j].mean()) / before[j].std()).item() for j in judges}
                way.scores.append((way.seconds, gains))
                sheet(list(made[:8]), arguments.out / f"{name}.png")
                print(f"{turn + 1}: {name}: {way.seconds:.0f} s, {gains}", file=sys.stderr, flush=True)
            figures = {name: {"steps": way.steps, "scores": way.scores} for name, way in ways.items()}
            (arguments.out / "figures.json").write_text(
                json.dumps({"machine": about, "ways": figures}, indent=2) + "\n"
            )
        dist.destroy_process_group()
    print(f"{in_words(about)}\n\n{table_of(ways, arguments.goal)}")


if __name__ == "__main__":
    main()
