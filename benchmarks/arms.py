"""Training runs that are compared with each other, one after the other in one process without Ray."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from rayvideo.data.table import LatentTable
from rayvideo.evaluation.generate import embed_captions, generate_clips, to_pixels
from rayvideo.evaluation.metrics import measure
from rayvideo.menagerie.latents import drawn_table
from rayvideo.menagerie.quality import JUDGED, score
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.models import VideoModel, load_model
from rayvideo.recipe import Recipe
from rayvideo.rewards import load_reward
from rayvideo.serving.local import LocalPool
from rayvideo.training.assembly import Assembly, assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine

PICTURED = 4
"""Captions of each set that a picture shows."""
MEASURED = ("motion", "flicker")


@dataclass
class Arm:
    """One of the runs: a settled recipe, and for how long."""

    name: str
    recipe: Recipe
    seconds: float
    """Of training; 0 leaves the model as it is."""
    degraded: float = 0.8
    """Share of the clips to train on that are degraded."""


@dataclass
class Result:
    """What a run came to."""

    arm: str
    seed: int
    steps: int
    """Optimizer steps, for rwr and ddpo rounds of sampling."""
    seconds: float
    """Of training."""
    scores: dict[str, dict[str, list[float]]]
    """Judge or measure -> caption set -> value of each clip."""


def run(arms: Sequence[Arm], out: Path, *, clips: int, captions: int | None) -> list[Result]:
    """Train every arm on the same drawn clips or their captions, and judge all by the same captions and noise.

    A run whose file is in `out` is not repeated. Beside the file lies a picture of its clips.

    Args:
        clips: To train on.
        captions: Of each set that are evaluated; None: all.
    """
    first = arms[0].recipe
    texts = {name: listed[:captions] for name, listed in evaluation_captions().items()}
    out.mkdir(parents=True, exist_ok=True)
    results = []
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        model = load_model(first.model.path)
        tables: dict[float, LatentTable] = {}
        embeddings = embed_captions(model, [caption for listed in texts.values() for caption in listed])
        for arm in arms:
            file = out / f"{arm.name}-{arm.recipe.seed}.json"
            if not file.exists():
                if arm.degraded not in tables:
                    place = Path(folder) / f"{arm.degraded:g}"
                    place.mkdir()
                    tables[arm.degraded] = drawn_table(model, clips, place, first.data.frames, arm.degraded)
                tuned, count, seconds = _train(arm, tables[arm.degraded])
                # Whatever an arm trains with, its clips are made as all others' are.
                made = _generate(first, tuned, texts, embeddings)
                _picture(made, file.with_suffix(".png"))
                result = Result(arm.name, arm.recipe.seed, count, seconds, _judge(first, made, texts))
                file.write_text(json.dumps(asdict(result)))
            results.append(Result(**json.loads(file.read_text())))
            print(f"{arm.name}, seed {arm.recipe.seed}: done", file=sys.stderr, flush=True)
        dist.destroy_process_group()
    return results


def in_process(recipe: Recipe, table: LatentTable) -> Assembly[DeepSpeedEngine]:
    """Everything that trains a recipe here, on the CPU, with the judges in this process."""
    return assemble(
        recipe,
        table,
        LocalPool(recipe.reward.judges),
        torch.device("cpu"),
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
    )


def _train(arm: Arm, table: LatentTable) -> tuple[VideoModel, int, float]:
    """Train until the time is spent; the tuned model, and the steps and seconds that it took."""
    model, adapted, _, engine, trainer = in_process(arm.recipe, table)
    started, step = time.monotonic(), 0
    while time.monotonic() - started < arm.seconds:
        step += 1
        trainer.step(step)
    seconds = time.monotonic() - started
    engine.close()
    model.denoiser = adapted
    return model, step, seconds


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
    scores = {
        judge.name: {name: score(judge, clips[name], texts).tolist() for name, texts in captions.items()}
        for judge in judges
    }
    measured = {name: [measure(clip) for clip in of_set] for name, of_set in clips.items()}
    return scores | {
        key: {name: [each[key] for each in of_set] for name, of_set in measured.items()} for key in MEASURED
    }


def _picture(clips: dict[str, Tensor], file: Path) -> None:
    """The judged frames of the first clips of each set: a row for each clip."""
    rows = torch.cat([of_set[:PICTURED, JUDGED] for of_set in clips.values()])
    pixels = to_pixels(rows)
    Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(-1, pixels.shape[1] * pixels.shape[3], 3)).save(file)
