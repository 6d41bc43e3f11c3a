"""The paper's Table 1 on the menagerie: every objective with the same training time, in one process without Ray.

    python benchmarks/objectives.py --out runs/objectives --minutes 5 --seeds 2 --captions 16 > table.md

Prints Markdown: methods × caption sets, the base first; each judge's mean score (the training judge is what was trained
on, the others never were), ± the standard deviation over training seeds, and the gain over the base in standard
deviations σ of the base's clips; then each run's gain over all clips ± its standard error. All methods are evaluated on
the same captions and noise, and train on the same clips or their captions. Each run leaves its scores and a picture of
its clips in --out; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from rayvideo.data.table import LatentTable
from rayvideo.evaluation.generate import embed_captions, generate_clips, to_pixels
from rayvideo.menagerie.latents import drawn_table
from rayvideo.menagerie.quality import JUDGED, score
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.models import VideoModel, load_model
from rayvideo.paths import path_argument
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.rewards import load_reward
from rayvideo.serving.local import LocalPool
from rayvideo.settling import settle
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine

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
PICTURED = 4
"""Captions of each set that a picture shows."""


@dataclass
class Result:
    """What a run came to."""

    method: str
    seed: int
    steps: int
    """Optimizer steps, for rwr and ddpo rounds of sampling, that the training time sufficed for."""
    scores: dict[str, dict[str, list[float]]]
    """Judge -> caption set -> score of each clip."""


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
    captions = {name: texts[: arguments.captions] for name, texts in evaluation_captions().items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        model = load_model(runs[0][1].model.path)
        table = drawn_table(model, arguments.clips, Path(folder), runs[0][1].data.frames)
        embeddings = embed_captions(model, [caption for texts in captions.values() for caption in texts])
        for name, recipe in runs:
            file = arguments.out / f"{name}-{recipe.seed}.json"
            if not file.exists():
                tuned, steps = _train(recipe, table, 0 if name == BASE else 60 * arguments.minutes)
                clips = _generate(runs[0][1], tuned, captions, embeddings)  # whatever a method trains with
                _picture(clips, file.with_suffix(".png"))
                result = Result(name, recipe.seed, steps, _judge(recipe, clips, captions))
                file.write_text(json.dumps(asdict(result)))
            print(f"{name}, seed {recipe.seed}: done", file=sys.stderr, flush=True)
        dist.destroy_process_group()
    results = [
        Result(**json.loads((arguments.out / f"{name}-{recipe.seed}.json").read_text())) for name, recipe in runs
    ]
    print(f"{arguments.minutes:g} min of training each, {arguments.seeds} seeds, {torch.get_num_threads()} threads.\n")
    _print(results)


def _train(recipe: Recipe, table: LatentTable, budget_s: float) -> tuple[VideoModel, int]:
    """Train for as long as the budget lasts; the tuned model, and how many steps that were."""
    model, adapted, _, engine, trainer = assemble(
        recipe,
        table,
        LocalPool(recipe.reward.judges),
        torch.device("cpu"),
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
    )
    started, step = time.monotonic(), 0
    while time.monotonic() - started < budget_s:
        step += 1
        trainer.step(step)
    engine.close()
    model.denoiser = adapted
    return model, step


def _generate(
    recipe: Recipe, model: VideoModel, captions: dict[str, list[str]], embeddings: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Caption set -> clips [N, F, 3, H, W]: the same captions and noise for every model."""
    options, data = recipe.evaluation, recipe.data
    return {
        name: generate_clips(
            model,
            texts,
            [0] * len(texts),
            steps=options.steps[0],
            guidance=options.guidance,
            frames=data.frames,
            height=data.height,
            width=data.width,
            embeddings=embeddings,
        )
        for name, texts in captions.items()
    }


def _judge(
    recipe: Recipe, clips: dict[str, Tensor], captions: dict[str, list[str]]
) -> dict[str, dict[str, list[float]]]:
    judges = [load_reward(judge) for judge in (*recipe.reward.judges, *recipe.evaluation.judges)]
    return {
        judge.name: {name: score(judge, clips[name], texts).tolist() for name, texts in captions.items()}
        for judge in judges
    }


def _picture(clips: dict[str, Tensor], file: Path) -> None:
    """The judged frames of the first clips of each set: a row for each clip."""
    rows = torch.cat([of_set[:PICTURED, JUDGED] for of_set in clips.values()])
    pixels = to_pixels(rows)
    Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(-1, pixels.shape[1] * pixels.shape[3], 3)).save(file)


def _print(results: list[Result]) -> None:
    base = next(result for result in results if result.method == BASE)
    for judge, of_base in base.scores.items():
        print(f"| {judge} | " + " | ".join(of_base) + " | each run | steps |\n|---|" + "---|" * (len(of_base) + 2))
        for method in dict.fromkeys(result.method for result in results):
            runs = [result for result in results if result.method == method]
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
