"""Every objective learns: the real engine, trainer and rollouts on a tiny real model, in one process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import Reward
from rayvideo.serving.local import LocalPool
from rayvideo.training.engine import Engine
from rayvideo.training.meters import Clock
from rayvideo.training.methods import rollout_for, trainer_for

CPU = torch.device("cpu")
CAPTIONS = ["red cat", "blue dog", "snail"]


class Brightness(Reward):
    """Mean pixel."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * frames.flatten(1).mean(1)


class BrightnessWithoutGradient(Brightness):
    """The same, for objectives that need no gradient."""

    differentiable = False

    @torch.no_grad()
    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, prompts)


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("group")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> LatentTable:
    """Made-up posteriors of three clips of four frames, with the tiny text tower's embeddings."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    text = load_model(tiny_pipeline, parts=("text",))
    embeddings = text.encode_prompts(["", *CAPTIONS]).numpy()
    clips = {
        "id": pa.array(range(3)),
        "video": pa.array(CAPTIONS),
        "caption": pa.array(CAPTIONS),
        "mean": tensor_array(5 * rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32) - 4),
    }
    spoken = {"caption": pa.array(["", *CAPTIONS]), "embedding": tensor_array(embeddings)}
    for name, columns in (("clips", clips), ("captions", spoken)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=1, **FORMAT)
    return LatentTable(
        [Place(f"{folder}/clips.parquet", row) for row in range(3)],
        {caption: Place(f"{folder}/captions.parquet", row) for row, caption in enumerate(["", *CAPTIONS])},
        [],
    )


def recipe_for(pipeline: Path, judge: str = "Brightness", **training: Any) -> Recipe:
    """Batches of four clips of four frames; a chain has three steps, editing runs two of them."""
    return parse_recipe(
        {
            "model": {"path": str(pipeline), "checkpointing": "none"},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 3, "strength": 0.7},
            "reward": {"judges": [{"name": "judge", "type": f"{__name__}:{judge}"}], "segments": 2},
            "training": {"batch_size": 4, "warmup_steps": 0, "lr": 0.02, **training},
        }
    )


def run(recipe: Recipe, table: LatentTable, steps: int) -> tuple[VideoModel, list[dict[str, float]]]:
    model = load_model(recipe.model.path, parts=("denoiser", "vae"))
    adapted = add_lora(model.denoiser, recipe.model.lora, seed=0)
    clock = Clock(CPU)
    rollout = rollout_for(recipe, model, table.unconditional(), clock)
    engine = Engine(adapted, recipe.training, rollout.passes)
    model.denoiser = engine.denoiser
    trainer = trainer_for(rollout, recipe, table, LocalPool(recipe.reward.judges), engine, clock)
    values = [trainer.step(step) for step in range(1, steps + 1)]
    engine.close()
    return model, values


LEARNING: list[tuple[dict[str, Any], str, int]] = [
    ({"objective": "reward"}, "Brightness", 8),
    ({"objective": "draft"}, "Brightness", 8),
    ({"objective": "draft", "draft": {"noisings": 3}}, "Brightness", 8),
    ({"objective": "rwr"}, "BrightnessWithoutGradient", 20),
    ({"objective": "ddpo"}, "BrightnessWithoutGradient", 20),
]


@pytest.mark.parametrize(
    ("training", "judge", "steps"), LEARNING, ids=lambda v: str(v) if isinstance(v, dict) else None
)
def test_the_score_rises(tiny_pipeline, table, training, judge, steps):
    recipe = recipe_for(tiny_pipeline, judge, **training)
    _, values = run(recipe, table, steps)
    print([round(v["score/judge"], 3) for v in values], [round(v["loss"], 5) for v in values][:4], values[-1])
    assert 0
