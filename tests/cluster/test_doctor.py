"""`rayvideo doctor` from a recipe to its verdict, with judges in their actors and a real step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml

from rayvideo.data import prepared, tasks
from rayvideo.data.table import DataError
from rayvideo.doctor import microbatch
from rayvideo.doctor.samples import sample
from rayvideo.menagerie.clips import training_scenes, write_clips
from rayvideo.models import load_model
from rayvideo.recipe import parse_recipe
from rayvideo.serving.local import LocalPool
from tests.doctor.conftest import judge_of
from tests.documents import block_of

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of six drawn clips."""
    return write_clips(tmp_path_factory.mktemp("drawn"), training_scenes(6, seed=0))


@pytest.fixture
def tree(tiny_pipeline: Path, listing: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(tiny_pipeline), "checkpointing": "blocks"},
        "data": {"manifest": str(listing), "height": 64, "width": 64, "frames": 8},
        "editing": {"steps": 4},
        "reward": {"judges": [judge_of().model_dump(mode="json")]},
        "training": {"precision": "fp32", "batch_size": 1, "accumulation": 2},
    }


def test_a_healthy_judge_and_a_broken_one_in_one_recipe(tree: dict[str, Any], tmp_path: Path) -> None:
    broken = judge_of("held_out", "tests.doctor.judges:Detached", dtype="bf16")
    (tmp_path / "my_rewards.py").write_text(block_of("README.md", "python", "(Reward)"))
    tree["evaluation"] = {"judges": [broken.model_dump(mode="json"), {"name": "blue", "type": "my_rewards:Blueness"}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "rayvideo.cli", "doctor", "--recipe", str(tmp_path / "recipe.yaml")]
    command += ["--json", str(tmp_path / "found.json"), "seed=3"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 1, done.stderr

    content = json.loads((tmp_path / "found.json").read_text())
    found = {(one["about"], one["name"]): one for one in content["findings"]}
    assert not content["ok"]
    assert [key for key, one in found.items() if one["ok"] is False] == [("held_out", "gradient")]
    for key in (
        ("judge", "finite differences"),
        ("blue", "finite differences"),
        ("judges", "actor against local"),
        ("training", "saturation"),
        ("training", "gradient reaching LoRA"),
        ("training", "memory"),
    ):
        assert found[key]["ok"], found[key]
    assert found["training", "memory"]["measured"].startswith("2 micro-batches of 1 clips")
    for words in ("✓  judge", "✗", "detached: scores have no graph", "→ score() must stay in torch", "1 of "):
        assert words in done.stdout, words


@pytest.mark.parametrize("objective", ["draft", "rwr", "ddpo"])
def test_a_step_of_the_other_objectives(tree: dict[str, Any], objective: str) -> None:
    tree["data"]["frames"], tree["editing"]["steps"] = 4, 2
    tree["training"] = {"precision": "fp32", "objective": objective, "batch_size": 2}
    recipe = parse_recipe(tree)
    samples, table = sample(recipe, CPU)
    assert len(set(samples.captions)) == len(table) == 6
    found = list(microbatch.examine(recipe, table, LocalPool(recipe.reward.judges), CPU))
    assert [one.name for one in found] == [
        "saturation",
        "gradient reaching LoRA",
        "memory",
        "gradient through the VAE",
    ]
    assert [one.ok for one in found] == [True, True, True, None], found  # this VAE knows no time


def test_frames_of_prepared_clips_are_decoded(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe(tree)
    _, table = sample(recipe, CPU)
    batch = table.rows(range(3))
    columns = {"id": batch.ids, "video": batch.videos, "caption": batch.captions, "reason": [None] * 3}
    tensors = {name: tasks.tensor_array(getattr(batch, name).numpy()) for name in ("mean", "logvar")}
    prepared.claim(str(tmp_path / "p"), fingerprint := prepared.fingerprint(recipe))
    tasks.write_shard(pa.table({**columns, **tensors}), str(tmp_path / "p"))
    texts = pa.table(
        {"caption": ["", *batch.captions], "embedding": tasks.tensor_array(torch.zeros(4, 48, 32).numpy())}
    )
    pq.write_table(texts, tmp_path / "p" / "captions.parquet", row_group_size=1)
    prepared.write_rejected(tmp_path / "p" / "rejected.jsonl", [])
    prepared.write_summary(str(tmp_path / "p"), {"finished": True, "fingerprint": fingerprint})

    tree["data"] |= {"manifest": None, "prepared": str(tmp_path / "p")}
    samples, opened = sample(parse_recipe(tree), CPU)
    assert len(opened) == 3
    assert samples.source == "decoded from data.prepared"
    vae = load_model(recipe.model.path, parts=("vae",))
    first = batch.captions.index(samples.captions[0])
    with torch.no_grad():
        decoded = vae.decode_frames(vae.posterior(batch.mean, batch.logvar).mode()).clamp(0, 1)
    torch.testing.assert_close(samples.frames[0], decoded[first, [2, 4]], rtol=1e-3, atol=1e-3)


def test_clips_that_cannot_be_read_are_named(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.mp4|||red cat\n")
    tree["data"]["manifest"] = str(tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"none of 1 clips can be used: .*gone\.mp4"):
        sample(parse_recipe(tree), CPU)
