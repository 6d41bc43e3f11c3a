"""The paper's Table 1 on the menagerie: every objective with the same training time, in one process without Ray.

    python benchmarks/objectives.py --minutes 120 --seeds 2 > table.md

Prints Markdown: methods × caption sets, the base first; each judge's mean score (the training judge is what was trained
on, the others never were), and ± the standard deviation over training seeds. All methods are evaluated on the same
captions and noise, and train on the same clips or their captions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.evaluation.generate import embed_captions, generate_clips
from rayvideo.menagerie.build import training_clips
from rayvideo.menagerie.quality import score
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.rewards import load_reward
from rayvideo.seeding import seed_for
from rayvideo.serving.local import LocalPool
from rayvideo.training.engine import Engine
from rayvideo.training.meters import Clock
from rayvideo.training.methods import rollout_for, trainer_for

RECIPE = Path(__file__).parents[1] / "jobs/recipes/menagerie.yaml"
METHODS: dict[str, list[str]] = {
    "DDPO": ["training.objective=ddpo", "training.batch_size=8"],
    "RWR": ["training.objective=rwr", "training.batch_size=8"],
    "DRaFT-1": ["training.objective=draft"],
    "DRaFT-LV": ["training.objective=draft", "training.draft.noisings=2"],
    "InstructVideo": ["training.objective=reward"],
}
"""Name -> what it changes in the recipe. Those that compare samples get more of them in a step."""

Scores = dict[tuple[str, str], float]
"""(caption set, judge) -> mean score."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all, shared out equally")
    parser.add_argument("--seeds", type=int, default=2, help="training runs per method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--clips", type=int, default=160, help="clips to train on")
    parser.add_argument("--captions", type=int, help="captions of each set (default: all)")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("overrides", nargs="*", help="key=value, for every method; give them before the options")
    arguments = parser.parse_args()

    captions = {name: texts[: arguments.captions] for name, texts in evaluation_captions().items()}
    recipes = {
        name: [
            load_recipe(
                arguments.recipe,
                ["training.workers=1", *METHODS[name], *arguments.overrides, f"seed={seed}"],
            )
            for seed in range(arguments.seeds)
        ]
        for name in arguments.methods
    }
    any_recipe = next(iter(recipes.values()))[0]
    budget_s = 60 * arguments.minutes / (len(recipes) * arguments.seeds)
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        model = load_model(any_recipe.model.path)
        table = _table(model, arguments.clips, Path(folder))
        embeddings = embed_captions(model, [caption for texts in captions.values() for caption in texts])
        results: dict[str, list[Scores]] = {"base": [_evaluate(any_recipe, model, captions, embeddings)]}
        steps: dict[str, list[int]] = {}
        for name, runs in recipes.items():
            results[name], steps[name] = [], []
            for recipe in runs:
                tuned, done = _train(recipe, table, budget_s)
                results[name].append(_evaluate(recipe, tuned, captions, embeddings))
                steps[name].append(done)
                print(f"{name}, seed {recipe.seed}: {done} steps", file=sys.stderr, flush=True)
        dist.destroy_process_group()
    print(f"{budget_s:.0f} s of training each, {arguments.seeds} seeds, {torch.get_num_threads()} threads.\n")
    _print(results, steps)


def _table(model: VideoModel, count: int, folder: Path) -> LatentTable:
    """Posteriors of drawn clips of varied quality, and the embeddings of their captions, as training reads them."""
    clips, captions = training_clips(count, seed=100)
    with torch.no_grad():
        posteriors = [model.encode_frames(clip[None]) for clip in clips]
    columns = {
        "id": pa.array(range(count)),
        "video": pa.array([str(number) for number in range(count)]),
        "caption": pa.array(captions),
        "mean": tensor_array(torch.cat([posterior.mean for posterior in posteriors]).numpy()),
        "logvar": tensor_array(torch.cat([posterior.logvar for posterior in posteriors]).numpy()),
    }
    spoken = embed_captions(model, captions)
    texts = {"caption": pa.array(list(spoken)), "embedding": tensor_array(torch.stack(list(spoken.values())).numpy())}
    for name, content in (("clips", columns), ("captions", texts)):
        pq.write_table(pa.table(content), folder / f"{name}.parquet", row_group_size=1, **FORMAT)
    return LatentTable(
        [Place(f"{folder}/clips.parquet", row) for row in range(count)],
        {caption: Place(f"{folder}/captions.parquet", row) for row, caption in enumerate(spoken)},
        [],
    )


def _train(recipe: Recipe, table: LatentTable, budget_s: float) -> tuple[VideoModel, int]:
    """Train for as long as the budget lasts; the tuned model, and how many steps that were."""
    model = load_model(recipe.model.path, parts=("denoiser", "vae"))
    adapted = add_lora(model.denoiser, recipe.model.lora, seed_for(recipe.seed, "lora"))
    clock = Clock(model.device)
    rollout = rollout_for(recipe, model, table.unconditional(), clock)
    engine = Engine(adapted, recipe.training, rollout.passes)
    model.denoiser = engine.denoiser
    trainer = trainer_for(rollout, recipe, table, LocalPool(recipe.reward.judges), engine, clock)
    started, step = time.monotonic(), 0
    while time.monotonic() - started < budget_s:
        step += 1
        trainer.step(step)
    engine.close()
    model.denoiser = adapted
    return model, step


def _evaluate(
    recipe: Recipe, model: VideoModel, captions: dict[str, list[str]], embeddings: dict[str, Tensor]
) -> Scores:
    """Mean scores of generated clips, the same captions and noise for every model."""
    options, data = recipe.evaluation, recipe.data
    judges = [load_reward(judge) for judge in (*recipe.reward.judges, *options.judges)]
    scores: Scores = {}
    for name, texts in captions.items():
        clips = generate_clips(
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
        scores |= {(name, judge.name): score(judge, clips, texts).mean().item() for judge in judges}
    return scores


def _print(results: dict[str, list[Scores]], steps: dict[str, list[int]]) -> None:
    (base,) = results["base"]
    sets_of: dict[str, list[str]] = defaultdict(list)
    for name, judge in base:
        sets_of[judge].append(name)
    for judge, sets in sets_of.items():
        print(f"| {judge} | " + " | ".join(sets) + " | steps |\n|---|" + "---|" * (len(sets) + 1))
        for method, runs in results.items():
            cells = []
            for name in sets:
                values = [run[name, judge] for run in runs]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.4f}{spread}")
            taken = ", ".join(map(str, steps.get(method, []))) or "-"
            print(f"| {method} | " + " | ".join(cells) + f" | {taken} |")
        print()


if __name__ == "__main__":
    main()
