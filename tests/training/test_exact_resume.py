"""A training that stops and goes on from its checkpoint takes the very steps that it would have taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import tensor_array
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.checkpoints import Part, newest_good, upload
from rayvideo.serving.local import LocalPool
from rayvideo.storage import fetched
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.ray_train.saver import refuse_code
from rayvideo.training.rng import load_rng, save_rng

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatentTable:
    """Posteriors and embeddings of five made-up clips."""
    folder, rng = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    captions = ["", "red cat", "blue dog"]
    clips = {
        "id": pa.array(range(5)),
        "video": pa.array([f"{number}.mp4" for number in range(5)]),
        "caption": pa.array([captions[1 + number % 2] for number in range(5)]),
        "mean": tensor_array(5 * rng.standard_normal((5, 4, 4, 8, 8), dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal((5, 4, 4, 8, 8), dtype=np.float32) - 4),
    }
    spoken = {"caption": pa.array(captions), "embedding": tensor_array(rng.standard_normal((3, 48, 32), dtype="f4"))}
    for name, columns in (("clips", clips), ("captions", spoken)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=1)
    return LatentTable(
        [Place(str(folder / "clips.parquet"), row) for row in range(5)],
        {caption: Place(str(folder / "captions.parquet"), row) for row, caption in enumerate(captions)},
        [],
    )


class Training:
    """One worker's trainer with judges in its own process."""

    def __init__(self, recipe: Recipe, table: LatentTable) -> None:
        built = assemble(
            recipe,
            table,
            LocalPool(recipe.reward.judges),
            CPU,
            lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
        )
        self.engine, self.trainer = built.engine, built.trainer

    def run(self, first: int, last: int) -> list[tuple[list[int], float]]:
        """Clips and reward of each step."""
        seen = []
        for step in range(first, last + 1):
            values = self.trainer.step(step)
            seen.append((self.trainer.taken(), values["reward"]))
        return seen

    def close(self) -> dict[str, Tensor]:
        adapter = self.engine.adapter()
        self.engine.close()
        return adapter


@pytest.mark.parametrize("stage", [0, 2])
def test_stopped_and_continued_is_the_same_as_undisturbed(tiny_pipeline, table, tmp_path, stage):
    recipe = parse_recipe(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [{"name": "bright", "type": "tests.cluster.judges:Brightness"}], "segments": 2},
            "training": {
                "precision": "fp32",
                "lr": 1e-3,
                "warmup_steps": 3,
                "zero_stage": stage,
                "batch_size": 1,
                "accumulation": 2,
            },
        }
    )
    undisturbed = Training(recipe, table)
    expected = undisturbed.run(1, 4)
    undisturbed.engine.save(tmp_path / "expected")
    wanted = undisturbed.close()

    stopped = Training(recipe, table)
    seen = stopped.run(1, 2)
    local = tmp_path / "local"
    stopped.engine.save(local)
    save_rng(local / "rng-00000.pt")
    (local / "state.json").write_text(json.dumps({"step": 2}))
    upload(local, str(tmp_path / "checkpoints/step-000002"), Part("abc", "one", 2, 0, 1))
    stopped.close()

    continued = Training(recipe, table)
    good, _ = newest_good(str(tmp_path), "abc")
    assert good is not None
    with fetched(good.folder) as folder:
        refuse_code(folder, "step-000002")
        continued.engine.load(folder)
        load_rng(folder / "rng-00000.pt")
    assert seen + continued.run(3, 4) == expected
    continued.engine.save(tmp_path / "found")
    assert same_states(tmp_path / "expected", tmp_path / "found")
    found = continued.close()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def same_states(one: Path, other: Path) -> bool:
    """Whether all tensors in DeepSpeed's files, the optimizer's among them, are equal bit for bit."""
    files = sorted((one / "ds").glob("*.pt"))
    assert files
    return all(
        torch.equal(a, b)
        for file in files
        for a, b in zip(*(list(tensors(torch.load(f, weights_only=False))) for f in (file, other / "ds" / file.name)),
                        strict=True)
    )  # fmt: skip


def tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ():
        yield from tensors(value)
