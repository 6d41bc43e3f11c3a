"""Clips that training shows: the same whatever the number of workers, and without a trace in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
from mlflow import MlflowClient

from rayvideo.data.video import read_clip
from rayvideo.evaluation.previews import Previews, embed_shown
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.sections import Lora
from rayvideo.serving.pool import RewardPool
from rayvideo.tracking import RunRef, Tracker, create_run


@pytest.fixture
def recipe(tiny_pipeline: Path, tiny_judge: Path, tmp_path: Path) -> Recipe:
    (tmp_path / "in.txt").write_text("".join(f"red cat {n}\n" for n in range(8)))
    (tmp_path / "new.txt").write_text("blue snail\n")
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    sets = {"in": str(tmp_path / "in.txt"), "new": str(tmp_path / "new.txt")}
    return parse_recipe(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "reward": {"judges": [{"name": "judge", **judge}]},
            "evaluation": {"sets": sets, "steps": 2, "previews": 2, "batch_size": 2},
            "storage": str(tmp_path / "runs"),
        }
    )


def show(
    recipe: Recipe, embeddings: dict[str, Any], pool: RewardPool, ref: RunRef, folder: Path, rank: int, world_size: int
) -> list[dict[str, float]]:
    """What a training worker does: previews before and after an update of the adapter."""
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    model = load_model(recipe.model.path, parts=("denoiser", "vae"))
    model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
    tracker = Tracker(ref) if rank == 0 else None
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    run = str(folder / "run")
    previews = Previews(recipe, model, embeddings, pool, run, tracker, tell, rank=rank, world_size=world_size)
    state = torch.get_rng_state()
    first = previews.show(0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        torch.manual_seed(0)
        for weight in lora_parameters(model.denoiser).values():
            weight.normal_(std=0.3)
    last = previews.show(2)
    assert told[0] == ("previews of the base", 0, 3)
    assert told[-1] == ("previews of step 2", 3, 3)
    if tracker:
        tracker.flush()
        previews._tracker = Tracker(ref, skip_logged=True)  # as a resumed training has it
    assert [previews.lacks(step) for step in (2, 3)] == [False, True]
    if world_size > 1:
        dist.destroy_process_group()
    return [first, last]


@pytest.mark.usefixtures("ray_cluster")
def test_one_worker_or_two_show_the_same(recipe: Recipe, tmp_path: Path) -> None:
    embeddings = embed_shown(recipe)
    assert set(embeddings) == {"", "red cat 0", "red cat 4", "blue snail"}
    ref = create_run(recipe, tmp_path / "runs" / "run")
    pool = RewardPool(recipe.reward.judges)
    alone = show(recipe, embeddings, pool, ref, tmp_path / "alone", 0, 1)
    (tmp_path / "shared").mkdir()
    remote = ray.remote(num_cpus=1)(show)
    shared, silent = ray.get(
        [remote.remote(recipe, embeddings, pool, ref, tmp_path / "shared", rank, 2) for rank in range(2)]
    )
    pool.close()

    assert silent == [{}, {}]
    for one, two in zip(alone, shared, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    first, last = alone
    assert set(first) == {
        f"{group}/preview.{name}.{metric}"
        for name in ("in", "new")
        for metric, where in {"judge": "1-reward", "motion": "3-motion", "flicker": "3-motion"}.items()
        for group in (where, "9-base")
    }
    assert first["1-reward/preview.in.judge"] == first["9-base/preview.in.judge"]  # B = 0: nothing is tuned yet
    assert last["9-base/preview.in.judge"] == first["9-base/preview.in.judge"]
    assert last["1-reward/preview.in.judge"] != pytest.approx(first["1-reward/preview.in.judge"], abs=1e-4)

    file = tmp_path / "alone" / "run" / "samples" / "step-000002" / "02-new-blue-snail.mp4"
    both = read_clip(file, 4, 8, 256, 512).astype(float)  # enlarged four times
    assert np.abs(both[:, :, :256] - both[:, :, 256:]).mean() > 2
    client = MlflowClient(ref.uri)
    videos = [artifact.path for artifact in client.list_artifacts(ref.run_id, "samples/step-000002")]
    assert videos == [
        f"samples/step-000002/{n}.mp4" for n in ("00-in-red-cat-0", "01-in-red-cat-4", "02-new-blue-snail")
    ]
    history = client.get_metric_history(ref.run_id, "1-reward/preview.in.judge")
    assert sorted({point.step for point in history}) == [0, 2]


@pytest.mark.usefixtures("ray_cluster")
def test_an_adapter_that_changes_no_clip_is_warned_of(recipe: Recipe, tmp_path: Path, caplog: Any) -> None:
    tracker = Tracker(create_run(recipe, tmp_path / "runs" / "run"))
    model = load_model(recipe.model.path, parts=("denoiser", "vae"))
    model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
    pool = RewardPool(recipe.reward.judges)
    previews = Previews(recipe, model, embed_shown(recipe), pool, str(tmp_path / "run"), tracker)
    previews.show(0)
    assert "changes nothing" not in caplog.text
    previews.show(1)
    assert "step 1: the adapter changes nothing: every clip that is shown is the base's" in caplog.text
    pool.close()


def test_without_captions_nothing_is_shown(recipe: Recipe, tmp_path: Path) -> None:
    silent = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"sets": {}})})
    assert embed_shown(silent) == {}
