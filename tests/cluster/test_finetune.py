"""The whole job: from a list of clips to an adapter that diffusers loads, through lost judges and stopped runs."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from mlflow import MlflowClient
from peft import PeftModel
from ray._private.state import actors
from safetensors.torch import load_file
from torch import Tensor

from rayvideo.data.latents import prepare_to
from rayvideo.errors import RecipeError, Stopped
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import RewardError
from rayvideo.sections import Workers
from rayvideo.settling import settle
from rayvideo.tracking import tracking_uri
from rayvideo.training import launch
from rayvideo.training.launch import finetune
from rayvideo.training.learning import NothingLearnedError
from rayvideo.training.preflight import check
from tests.odd import ODD

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / ODD
    folder.mkdir()
    (folder / "captions.txt").write_text("red ball\n")
    return folder


def recipe_for(pipeline: Path, judge: Path, clips: Path, storage: Path, name: str, **changes: Any) -> Recipe:
    hpsv2 = {"checkpoint": str(judge / "judge.pt"), "architecture": str(judge / "open_clip_config.json")}
    fragile = {
        "name": "fragile",
        "dtype": "auto",
        "weight": 0.1,
        "type": "tests.cluster.judges:Fragile",
        "checkpoint": str(storage / "fuse"),
        "options": {"after": 4},
    }
    tree: dict[str, Any] = {
        "model": {"path": str(pipeline)},
        "data": {"manifest": str(clips / "list.txt"), "height": 64, "width": 64},
        "editing": {"steps": 5},
        "reward": {"judges": [{"name": "hps", **hpsv2}, fragile]},
        "training": {"precision": "fp32", "steps": STEPS, "lr": 1e-3, "warmup_steps": 2, "checkpoint_every": 2}
        | changes.pop("training"),
        "evaluation": {"steps": 2, "previews": 1} | changes.pop("evaluation", {}),
        "tracking": {"run_name": name},
        "storage": str(storage / "runs"),
    }
    recipe = parse_recipe(tree | changes)
    check(recipe)
    return recipe


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Finished:
    """A run that two workers made, while their judge was killed once."""

    def __init__(self, recipe: Recipe, summary: dict[str, Any]) -> None:
        self.recipe = recipe
        self.summary = summary
        self.folder = Path(summary["run_folder"])

    def adapter(self) -> dict[str, Tensor]:
        return load_file(self.folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(tiny_pipeline: Path, tiny_judge: Path, tiny_clips: Path, storage: Path, ray_cluster: None) -> Finished:
    workers = {"workers": 2, "batch_size": 1, "accumulation": 2}
    sets = {"sets": {"in": str(storage / "captions.txt")}}
    recipe = recipe_for(tiny_pipeline, tiny_judge, tiny_clips, storage, "pair", training=workers, evaluation=sets)
    (storage / "fuse").write_text("die")
    return Finished(recipe, finetune(recipe))


def test_a_killed_judge_does_not_stop_a_run(finished, storage):
    assert not (storage / "fuse").exists(), "the judge was never killed"
    assert [line["step"] for line in metrics_of(finished.folder)] == [1, 2, 3, 4]


def test_every_step_is_logged(finished):
    lines = metrics_of(finished.folder)
    segments = range(finished.recipe.reward.segments)
    assert set(lines[0]) == {
        "step", "clips", "reward", "loss", "saturation", "gradient_norm", "clipped", "skipped", "lr",
        *(f"score/{judge}" for judge in ("hps", "fragile")),
        *(f"score/{judge}/segment-{i}" for judge in ("hps", "fragile") for i in segments),
        *(f"judge_gradient_norm/{judge}" for judge in ("hps", "fragile")),
        *(f"judge_micro_batch/{judge}" for judge in ("hps", "fragile")),
        "judge_cosine/hps/fragile",
        *(f"seconds/{phase}" for phase in ("data", "rollout", "decode", "judge", "backward", "step")),
    }  # fmt: skip
    for line in lines:
        assert line["loss"] == pytest.approx(1 - line["reward"])
        assert line["gradient_norm"] > 0
        assert line["score/hps"] == pytest.approx(sum(line[f"score/hps/segment-{i}"] for i in segments) / len(segments))
    assert [line["lr"] for line in lines] == [5e-4, 1e-3, 1e-3, 1e-3]
    ref = finished.summary["mlflow"]
    client = MlflowClient(tracking_uri(finished.recipe))
    history = client.get_metric_history(ref["run_id"], "1-reward/score.hps")
    assert {point.step: point.value for point in history} == {line["step"]: line["score/hps"] for line in lines}
    run = client.get_run(ref["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.workers"] == "2"


def test_the_first_step_does_not_wait_for_what_it_does_not_need(finished):
    """Neither for the base's previews nor for an actor for datasets; as Ray names its actors."""
    run = finished.summary["mlflow"]["run_id"]
    client = MlflowClient(tracking_uri(finished.recipe))
    base, step = (client.get_metric_history(run, name)[0] for name in ("3-motion/preview.in.motion", "1-reward/reward"))
    assert (base.step, step.step) == (0, 1)
    assert base.timestamp >= step.timestamp
    classes = {actor["ActorClassName"] for actor in actors().values()}
    assert any("TrainController" in name for name in classes)
    assert not any("DatasetManager" in name for name in classes)


def test_every_figure_stands_in_the_documents_table(finished):
    table = (ROOT / "docs" / "summary.md").read_text(encoding="utf-8").partition("## metrics.jsonl")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    patterns = [re.sub(r"\b(JUDGE|OTHER|PHASE|I)\b", "[^/]+", name) for name in documented]
    logged = set(metrics_of(finished.folder)[0])
    found = {pattern: {key for key in logged if re.fullmatch(pattern, key)} for pattern in patterns}
    assert set().union(*found.values()) == logged
    assert [pattern for pattern, keys in found.items() if not keys] == []


def test_the_run_folder_holds_everything(finished):
    folder, summary = finished.folder, finished.summary
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert (summary["steps"], summary["clips"], summary["rejected"]) == (STEPS, 6, 0)
    assert summary["scores"]["hps"].keys() == {"first", "last"}
    written = parse_recipe(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert written == settle(finished.recipe, "training")
    assert written.reward.judges[1].dtype in ("fp32", "bf16")  # what "auto" became
    assert (folder / "rejected.jsonl").read_text() == ""
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    assert checkpoints == ["step-000002", "step-000004"]
    samples = sorted(str(path.relative_to(folder)) for path in (folder / "samples").rglob("*.mp4"))
    assert samples == [f"samples/step-{step:06d}/00-in-red-ball.mp4" for step in (0, STEPS)]
    client = MlflowClient(tracking_uri(finished.recipe))
    stored = {artifact.path for artifact in client.list_artifacts(summary["mlflow"]["run_id"], "adapter")}
    assert "adapter/adapter_model.safetensors" in stored


def test_what_is_bound_and_what_judges_see_stands_in_mlflow(finished):
    client = MlflowClient(tracking_uri(finished.recipe))
    tags = client.get_run(finished.summary["mlflow"]["run_id"]).data.tags
    weights = finished.adapter()
    assert int(tags["adapter.layers"]) == len(weights) // 2
    assert int(tags["adapter.parameters"]) == sum(weight.numel() for weight in weights.values())
    shown = r"4 of 16 frames at 8 fps, 64x64 pixels of 0\.\d+ to [01]\.\d+, "
    assert re.fullmatch(shown + "resized to 32x32, bilinear", tags["sees.hps"])
    assert re.fullmatch(shown + "as they are, unless the judge's own code resizes them", tags["sees.fragile"])
    assert "still" not in tags, "every pair moves"


def test_a_run_that_learns_nothing_ends_after_its_first_step(tiny_pipeline, tiny_judge, tiny_clips, storage):
    blind = {"judges": [{"name": "blind", "type": "tests.cluster.judges:Blind"}]}
    training = {"workers": 1, "batch_size": 1}
    recipe = recipe_for(tiny_pipeline, tiny_judge, tiny_clips, storage, "blind", training=training, reward=blind)
    with pytest.raises(NothingLearnedError, match="step 1: the adapter has not moved: no gradient of the judges"):
        finetune(recipe)
    folder = storage / "runs" / "blind"
    assert [line["step"] for line in metrics_of(folder)] == [1]
    assert not list(folder.glob("checkpoints/step-*"))


def test_diffusers_and_peft_load_the_adapter(finished, tiny_pipeline):
    def clip() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        made = pipe("red ball", num_frames=4, height=64, width=64, num_inference_steps=2, generator=generator,
                    output_type="pt")  # fmt: skip
        return made.frames

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    before = clip()
    pipe.unet = PeftModel.from_pretrained(pipe.unet, finished.summary["adapter"])
    after = clip()
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_stopped_run_goes_on_and_one_worker_is_as_good_as_two(
    finished, tiny_pipeline, tiny_judge, tiny_clips, storage
):
    """One worker with two clips a micro-batch is stopped by a NaN, resumed, and ends where the two workers ended."""
    alone = {"workers": 1, "batch_size": 2, "accumulation": 2, "zero_stage": 3}
    prepare_to(finished.recipe, str(storage / "latents"))
    data = {"prepared": str(storage / "latents"), "height": 64, "width": 64}
    recipe = recipe_for(tiny_pipeline, tiny_judge, tiny_clips, storage, "alone", training=alone, data=data)
    folder = storage / "runs" / "alone"
    (storage / "fuse").write_text("nan")
    with pytest.raises(RewardError) as stopped:
        finetune(recipe)
    assert "step 3, clips [" in str(stopped.value)
    assert "judge 'fragile' gave NaN or Inf as score for captions [" in str(stopped.value)
    run_id = json.loads((folder / "summary.json").read_text())["mlflow"]["run_id"]
    client = MlflowClient(tracking_uri(recipe))
    assert client.get_run(run_id).info.status == "FAILED"
    assert [line["step"] for line in metrics_of(folder)] == [1, 2]

    with pytest.raises(RecipeError, match="this run exists"):
        finetune(recipe)
    summary = finetune(recipe, resume=True)
    assert summary["mlflow"]["run_id"] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    differ = ("seconds/", "judge_gradient_norm/", "judge_cosine/", "clips")
    timeless = [key for key in lines[0] if not key.startswith(differ)]
    for own, other in zip(lines, metrics_of(finished.folder), strict=True):
        assert own["clips"] == other["clips"]
        assert {key: own[key] for key in timeless} == pytest.approx({key: other[key] for key in timeless}, rel=1e-3)
    tuned, wanted = load_file(folder / "adapter" / "adapter_model.safetensors"), finished.adapter()
    assert tuned.keys() == wanted.keys()
    error = torch.cat([(tuned[name] - wanted[name]).flatten() for name in wanted])
    size = torch.cat([weight.flatten() for name, weight in wanted.items() if "lora_B" in name])
    assert error.norm() < 1e-2 * size.norm()


def test_a_judge_that_fails_ends_the_encoding(tiny_pipeline, tiny_judge, tiny_clips, storage, capsys):
    (storage / "many.txt").write_text("\n".join(f"{tiny_clips}/ball{i % 6}.mp4|||clip {i}" for i in range(300)))
    data = {"manifest": str(storage / "many.txt"), "height": 64, "width": 64, "batch_size": 1}
    broken = {"judges": [{"name": "broken", "type": "tests.cluster.judges:Fragile"}]}
    recipe = recipe_for(
        tiny_pipeline, tiny_judge, tiny_clips, storage, "broken", training={"batch_size": 1}, data=data, reward=broken
    )
    with pytest.raises(RewardError, match="judge 'broken': Fragile needs a checkpoint"):
        finetune(recipe)
    told = capsys.readouterr().err
    assert "encoding clips: 0/300" in told
    assert "300/300" not in told
    assert not (storage / "runs" / "broken" / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_told_to_end_goes_on_where_it_was(finished, tiny_pipeline, tiny_judge, tiny_clips, storage):
    """SIGTERM to one of two workers, then to the driver; resumed on one worker, it ends where `finished` did."""
    workers = {"workers": 2, "batch_size": 1, "accumulation": 2, "checkpoint_every": 99}
    every = {"sets": {"in": str(storage / "captions.txt")}, "every": 1}
    recipe = recipe_for(tiny_pipeline, tiny_judge, tiny_clips, storage, "told", training=workers, evaluation=every)
    folder = storage / "runs" / "told"
    Thread(target=terminate_a_worker, args=(folder / "metrics.jsonl",), daemon=True).start()
    with terminated_at_the_next_attempt(), pytest.raises(Stopped) as stopped:
        finetune(recipe)
    assert stopped.value.exit_code == 143
    done = stopped.value.steps
    assert 2 <= done < STEPS
    assert f"stopped by SIGTERM after step {done}, which is saved" in str(stopped.value)
    assert "tracking.run_name=told --resume" in str(stopped.value)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["steps"]) == (False, done)
    client = MlflowClient(tracking_uri(recipe))
    assert client.get_run(summary["mlflow"]["run_id"]).info.status == "KILLED"

    summary = finetune(changed(recipe, workers=Workers(max=1)), resume=True)
    assert summary["finished"]
    lines, wanted = metrics_of(folder), metrics_of(finished.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["reward"] for line in lines] == pytest.approx([line["reward"] for line in wanted], rel=1e-6)
    shown = client.get_metric_history(summary["mlflow"]["run_id"], "3-motion/preview.in.motion")
    assert sorted(point.step for point in shown) == [0, 1, 2, 3, 4], "a stop's step was left out, or shown twice"
    tuned = load_file(folder / "adapter" / "adapter_model.safetensors")
    error = torch.cat([(tuned[name] - weight).flatten() for name, weight in finished.adapter().items()])
    assert error.norm() < 1e-5 * torch.cat([weight.flatten() for weight in tuned.values()]).norm()
    with pytest.raises(RecipeError, match=r"training\.workers: 3 can't share the 4 clips .* allowed .*: 1, 2, 4$"):
        finetune(changed(recipe, workers=Workers(max=3), steps=STEPS + 1), resume=True)


def changed(recipe: Recipe, **training: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def terminate_a_worker(metrics: Path) -> None:
    while not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.02)
    workers = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in child.name()]
    assert len(workers) == 2
    workers[-1].terminate()


@contextmanager
def terminated_at_the_next_attempt() -> Iterator[None]:
    """SIGTERM to this process as soon as `finetune` says that it starts workers again."""

    class Signalling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = Signalling()
    launch.logger.addHandler(handler)
    yield
    launch.logger.removeHandler(handler)
