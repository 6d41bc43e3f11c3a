"""Training on several processes with judges in actors: the numbers of plain autograd in one process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo import editing
from rayvideo.data.table import LatentTable, Place, batch_indices
from rayvideo.data.tasks import tensor_array
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import clamp_pixels, load_reward
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from rayvideo.sections import Lora
from rayvideo.seeding import generator_for
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.serving.pool import RewardPool
from rayvideo.training import objectives
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.meters import Clock, mean_over_workers
from rayvideo.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("ray_cluster")

CPU = torch.device("cpu")
STEPS = 2
HERE = "tests.cluster.judges"


def recipe_for(pipeline: Path, judge: Path, training: dict[str, Any], checkpointing: str) -> Recipe:
    hpsv2 = {"checkpoint": str(judge / "judge.pt"), "architecture": str(judge / "open_clip_config.json")}
    return parse_recipe(
        {
            "model": {"path": str(pipeline), "checkpointing": checkpointing},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {
                "judges": [{"name": "hps", **hpsv2}, {"name": "bright", "type": f"{HERE}:Brightness", "weight": -0.1}],
                "segments": 2,
            },
            "training": {"precision": "fp32", "lr": 1e-3, "warmup_steps": 2, **training},
        }
    )


@pytest.fixture(scope="module")
def table(ray_cluster: None) -> LatentTable:
    """Posteriors and embeddings of three made-up clips in the object store."""
    rng = np.random.default_rng(0)
    captions = ["", "red cat", "blue dog", "a very small snail"]
    clips = {
        "id": pa.array(range(3)),
        "video": pa.array([f"{number}.mp4" for number in range(3)]),
        "caption": pa.array(captions[1:]),
        "mean": tensor_array(5 * rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32) - 4),
    }
    embeddings = tensor_array(rng.standard_normal((4, 48, 32), dtype=np.float32))
    stored = ray.put(pa.table(clips))
    spoken = ray.put(pa.table({"caption": pa.array(captions), "embedding": embeddings}))
    return LatentTable(
        [Place(stored, row) for row in range(3)], {c: Place(spoken, row) for row, c in enumerate(captions)}, []
    )


class Expected(NamedTuple):
    adapter: dict[str, Tensor]
    start: dict[str, Tensor]
    norms: list[float]


@pytest.fixture(scope="module")
def expected(tiny_pipeline: Path, tiny_judge: Path, table: LatentTable) -> Expected:
    """What plain autograd and torch's AdamW make of the whole global batch of four clips."""
    recipe = recipe_for(tiny_pipeline, tiny_judge, {"batch_size": 4}, "none")
    rewards = [(judge.weight, load_reward(judge)) for judge in recipe.reward.judges]
    model = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    adapter = lora_parameters(with_lora(model))
    start = {name: weight.detach().clone() for name, weight in adapter.items()}
    optimizer = torch.optim.AdamW(adapter.values(), lr=0.0, weight_decay=0.0)
    grid = editing.timesteps(model.scheduler, 5, 0.6)
    norms = []
    for step in range(1, STEPS + 1):
        clips = table.rows(batch_indices(len(table), recipe.seed, step - 1, 4))
        own = [generator_for(recipe.seed, "edit", step, position) for position in range(4)]
        latents = model.posterior(clips.mean, clips.logvar).sample(own)
        noise = editing.offset_noise(latents, 0.1, own)
        prompts = torch.cat([table.unconditional().expand(4, -1, -1), clips.embeddings])
        predict = editing.guided(partial(model.predict, prompt_embeds=prompts), 3.0)
        noisy = editing.corrupt(latents, noise, model.scheduler, grid[0])
        edited = editing.denoise(predict, noisy, model.scheduler, grid, checkpoint=False)
        indices = sample_segments(4, 4, 2, generator=own)
        every = clamp_pixels(model.decode_frames(edited), "straight_through")
        chosen = every[torch.arange(4)[:, None], indices].flatten(0, 1)
        captions = [caption for caption in clips.captions for _ in range(2)]
        scores = sum((w * judge.score(chosen, captions) for w, judge in rewards), start=torch.zeros(8)).view(4, 2)
        loss = 1 - video_reward(scores, attenuation(indices, 4)).mean()
        loss.backward()
        norms.append(torch.nn.utils.get_total_norm([w.grad for w in adapter.values() if w.grad is not None]).item())
        optimizer.param_groups[0]["lr"] = 1e-3 * step / 2
        optimizer.step()
        optimizer.zero_grad()
    return Expected({name: weight.detach() for name, weight in adapter.items()}, start, norms)


def with_lora(model: Any) -> torch.nn.Module:
    """Its denoiser with an adapter that already does something, so that both of its matrices get gradients."""
    model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
    with torch.no_grad():
        for name, weight in lora_parameters(model.denoiser).items():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator_for(0, name)))
    return model.denoiser


@ray.remote(num_cpus=1)
def work(
    recipes: list[Recipe], table: LatentTable, pool: RewardPool, meeting: str, rank: int
) -> list[tuple[dict[str, Tensor], list[dict[str, float]]]]:
    """One of two workers: the adapter and the logged values after `STEPS` steps of each recipe."""
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return [train_here(recipe, table, pool, rank) for recipe in recipes]


def train_here(
    recipe: Recipe, table: LatentTable, pool: RewardPool, rank: int
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    model = load_model(recipe.model.path, dtype=DTYPES[recipe.training.precision], parts=("denoiser", "vae"))
    if recipe.model.checkpointing in ("blocks", "both"):
        model.enable_checkpointing()
    engine = DeepSpeedEngine(with_lora(model), recipe.training)
    model.denoiser = engine.denoiser
    clock = Clock(CPU)
    reward = ClipReward(pool, recipe.reward, recipe.data.frames, recipe.data.fps)
    objective = objectives.build(recipe, model, table.unconditional(), clock, reward.shown)
    trainer = Trainer(recipe, objective, table, reward, engine, clock, rank=rank)
    values = [mean_over_workers(trainer.step(step), CPU) for step in range(1, STEPS + 1)]
    adapter = engine.adapter()
    engine.close()
    return adapter, values


EXACT = (1e-4, 1e-4)
ROUNDED = (0.02, 0.5)  # AdamW's first steps turn rounding errors of the smallest gradients into steps of full size
CASES: list[tuple[dict[str, Any], str, tuple[float, float]]] = [
    ({"zero_stage": 0}, "none", EXACT),
    ({"zero_stage": 1}, "blocks", EXACT),
    ({"zero_stage": 2}, "step", EXACT),
    ({"zero_stage": 3}, "blocks", EXACT),
    ({"zero_stage": 3}, "both", EXACT),
    ({"zero_stage": 2, "precision": "bf16"}, "blocks", ROUNDED),
    ({"zero_stage": 3, "precision": "bf16"}, "step", ROUNDED),
]


@pytest.fixture(scope="module")
def outcomes(tiny_pipeline: Path, tiny_judge: Path, table: LatentTable, tmp_path_factory: pytest.TempPathFactory):
    """What two workers, each with two micro-batches of one clip, make of every case."""
    shape = {"workers": 2, "batch_size": 1, "accumulation": 2}
    recipes = [recipe_for(tiny_pipeline, tiny_judge, shape | options, kind) for options, kind, _ in CASES]
    pool = RewardPool(recipes[0].reward.judges)
    meeting = str(tmp_path_factory.mktemp("workers") / "meeting")
    first, second = ray.get([work.remote(recipes, table, pool, meeting, rank) for rank in range(2)])
    pool.close()
    for (own, values), (other, other_values) in zip(first, second, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
        assert values == other_values
    return first


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{o}-{c}" for o, c, _ in CASES])
def test_workers_stages_and_micro_batches_change_nothing(expected, outcomes, case):
    adapter, values = outcomes[case]
    norm_tolerance, tolerance = CASES[case][2]
    moved = torch.cat([(expected.adapter[name] - expected.start[name]).flatten() for name in adapter])
    error = torch.cat([(expected.adapter[name] - adapter[name]).flatten() for name in adapter])
    assert [value["gradient_norm"] for value in values] == pytest.approx(expected.norms, rel=norm_tolerance)
    assert error.norm() <= tolerance * moved.norm()
