"""Base against tuned through real actors, and the job that people run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.data.video import read_clip
from rayvideo.errors import RecipeError
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.compare import Comparison, check, evaluate
from rayvideo.evaluation.findings import warnings
from rayvideo.models.lora import WEIGHTS
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import Reward
from rayvideo.tracking import create_run

ROOT = Path(__file__).parents[2]


class Names(Reward):
    """A kind classifier as a judge: 1.0 if the brightest channel is the colour that the caption names, else 0.0."""

    differentiable = False

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        named = [{"red": 0, "green": 1, "blue": 2}.get(prompt.split()[0], 3) for prompt in prompts]
        return (frames.mean((-2, -1)).argmax(1) == torch.tensor(named)).float()


class Means(nn.Module):
    """Features: means of a coarse grid."""

    @classmethod
    def load(cls, checkpoint: str | None) -> Self:
        return cls()

    def features(self, frames: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(frames, 2).flatten(1)


@pytest.fixture
def tree(tiny_pipeline: Path, tiny_judge: Path, tiny_clips: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "in.txt").write_text("a|||red <b>cat</b> & dog|||16\nb|||blue bird|||16\nc|||green cow|||16\n")
    (tmp_path / "new.txt").write_text("red snail\n")
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    copy = shutil.copy(tiny_judge / "judge.pt", tmp_path / "other.pt")  # the file that trains may not report
    return {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 8, "height": 64, "width": 64},
        "reward": {"judges": [{"name": "judge", **judge}]},
        "training": {"precision": "fp32"},
        "evaluation": {
            "sets": {"in": str(tmp_path / "in.txt"), "new": str(tmp_path / "new.txt")},
            "steps": 2,
            "batch_size": 3,
            "seeds": [0, 5],
            "previews": 2,
            "judges": [{"name": "held_out", **judge, "checkpoint": str(copy), "resize": "bicubic"}],
        },
        "storage": str(tmp_path / "runs"),
    }


def changed(tree: dict[str, Any], **evaluation: Any) -> Recipe:
    return parse_recipe({**tree, "evaluation": {**tree["evaluation"], **evaluation}})


def scores(comparison: Comparison, metric: str) -> dict[tuple[Any, ...], float]:
    return {(r["set"], r["variant"], r["caption"], r["seed"]): r[metric] for r in comparison.chains[0].rows}


@pytest.mark.usefixtures("ray_cluster")
def test_base_is_the_model_without_adapter_on_any_workers_and_batches(
    tree: dict[str, Any], tiny_clips: Path, adapter: Path, tmp_path: Path
) -> None:
    listed = [f"{tiny_clips}/{line}" for line in (tiny_clips / "list.txt").read_text().splitlines()]
    (tmp_path / "reference.txt").write_text("\n".join([*listed, "missing.mp4|||red ball"]))
    tree["data"]["max_bad_fraction"] = 0.2
    names = {"name": "names", "type": f"{__name__}:Names"}
    measured = {
        "judges": [*tree["evaluation"]["judges"], names],
        "features": {
            "type": f"{__name__}:Means",
            "reference": dict.fromkeys(("in", "new"), str(tmp_path / "reference.txt")),
        },
    }
    both = evaluate(changed(tree, **measured, batch_size=5), str(adapter), tmp_path / "both")
    base = evaluate(changed(tree, **measured, batch_size=2, workers=2, cpus_per_worker=0.5), None, tmp_path / "base")

    assert not base.has_tuned
    for metric in ("judge", "held_out", "names", "motion", "optical_flow", "flicker", "colourfulness"):
        found = {key: score for key, score in scores(both, metric).items() if "base" in key}
        assert len(found) == (3 + 1) * 2
        assert scores(base, metric) == pytest.approx(found, abs=1e-4), metric
    assert set(scores(both, "names").values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    before, after = both.chains[0].sets["in"]["base"], both.chains[0].sets["in"]["tuned"]
    assert before["judge"]["n"] == 6
    assert before["judge"]["mean"] != pytest.approx(after["judge"]["mean"], abs=1e-3)
    assert base.chains[0].sets["new"]["base"]["kid"] == pytest.approx(
        both.chains[0].sets["new"]["base"]["kid"], abs=1e-3
    )
    assert before["kid"]["mean"] != pytest.approx(after["kid"]["mean"], abs=1e-3)
    assert both.unreadable == 1
    assert not both.unchanged
    assert not base.unchanged
    assert both.reference["motion"]["n"] == both.reference["names"]["n"] == len(listed)


@pytest.mark.usefixtures("ray_cluster")
def test_an_adapter_that_changes_no_clip_is_told(
    tree: dict[str, Any], adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faint = shutil.copytree(adapter, tmp_path / "faint")
    weights = load_file(faint / WEIGHTS)
    save_file({name: 1e-20 * weight for name, weight in weights.items()}, faint / WEIGHTS)
    recipe = changed(tree, judges=[], sets={"new": str(tmp_path / "new.txt")}, seeds=[0], steps=1)
    check(recipe, str(faint))
    with caplog.at_level("INFO"):
        found = evaluate(recipe, str(faint), tmp_path)
    assert found.unchanged
    assert warnings(recipe, found) == [
        "the adapter changes nothing: every clip of the tuned model is the base's, bit for bit"
    ]
    assert re.search(
        r"judge 'judge' sees 4 of 8 frames at 8 fps, 64x64 pixels of 0\.\d+ to \d\.\d+, resized to 32x32, bilinear",
        caplog.text,
    )


def test_sets_without_enough_clips_or_real_clips_are_refused(tree: dict[str, Any], tiny_clips: Path) -> None:
    kind = {"type": f"{__name__}:Means"}
    with pytest.raises(EvaluationError, match=r"features\.reference lacks a manifest for the caption set 'new'"):
        check(changed(tree, features={**kind, "reference": {"in": str(tiny_clips / "list.txt")}}), None)
    with pytest.raises(EvaluationError, match="caption set 'new': KID compares at least two clips"):
        check(changed(tree, features={**kind, "reference": str(tiny_clips / "list.txt")}, seeds=[0]), None)


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_unreadable_reference_clips_stop_it(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "reference.txt").write_text("missing.mp4|||red ball")
    features = {"type": f"{__name__}:Means", "reference": str(tmp_path / "reference.txt")}
    with pytest.raises(EvaluationError, match=r"1 of 1 clips can't be read, more than data\.max_bad_fraction 0\.05"):
        evaluate(changed(tree, features=features, judges=[]), None, tmp_path)


def test_the_job_fills_the_run_folder_and_the_run(
    tree: dict[str, Any], adapter: Path, tmp_path: Path, ray_cluster: None
) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(tree))
    run = tmp_path / "runs" / "first"
    shutil.copytree(adapter, run / "adapter")
    ref = create_run(parse_recipe(tree), run)
    (run / "summary.json").write_text(json.dumps({"steps": 3, "lr": 1e-5, "mlflow": ref.shareable()}))
    lines = [json.dumps({"step": step, "reward": step / 7, "score/judge": 0.2 + step / 10}) for step in range(4)]
    (run / "metrics.jsonl").write_text("\n".join(lines))

    command = [
        sys.executable,
        "jobs/evaluate.py",
        "--recipe",
        str(recipe_file),
        "tracking.run_name=first",
        "evaluation.steps=[2,1]",
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr

    for words in ("base", "tuned", "judge", "(held-out)", "±", f"Report: {run}/report/index.html", "mlflow ui"):
        assert words in done.stdout, words
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3  # fine-tuning's keys stay
    assert set(summary["sets"]) == {"in", "new"}
    for variant in ("base", "tuned"):
        assert {"mean", "std", "n"} == set(summary["sets"]["in"][variant]["held_out"])
    base, tuned = (summary["sets"]["in"][variant]["judge"] for variant in ("base", "tuned"))
    assert summary["by_steps"]["2"]["sets"] == summary["sets"]
    assert summary["by_steps"]["1"]["sets"]["in"]["tuned"]["judge"]["mean"] != pytest.approx(tuned["mean"], abs=1e-4)
    gain = (tuned["mean"] - base["mean"]) / base["std"]
    assert summary["gain_in_base_std"]["in"]["judge"] == pytest.approx(gain)
    assert summary["paired"]["in"]["judge"]["gain_in_base_std"]["value"] == pytest.approx(gain)
    assert summary["paired"]["in"]["optical_flow"]["clips"] == 6

    rows = pq.read_table(run / "clips.parquet").to_pylist()
    assert len(rows) == 2 * 2 * (3 + 1) * 2
    assert [row["steps"] for row in rows] == [2] * 16 + [1] * 16
    shown = [row for row in rows if row["file"]]
    assert len(shown) == 2 * (2 + 1)
    assert read_clip(run / shown[0]["file"], 8, 8, 64, 64).shape == (8, 64, 64, 3)

    page = (run / "report" / "index.html").read_text()
    assert page.count("data:video/mp4;base64,") == 6
    assert "score/judge" in page  # the reward curve

    client = MlflowClient(ref.uri)
    assert len(client.search_runs([ref.experiment_id])) == 1
    logged = client.get_run(ref.run_id)
    assert logged.data.metrics["1-reward/eval.in.judge"] == pytest.approx(tuned["mean"])
    assert {"1-reward/eval-1-steps.in.judge", "2-held-out/eval.in.held_out"} <= set(logged.data.metrics)
    curve = {point.step: point.value for point in client.get_metric_history(ref.run_id, "1-reward/eval.in.judge")}
    assert curve == {0: pytest.approx(base["mean"]), 3: pytest.approx(tuned["mean"])}
    assert {each.dataset.name for each in logged.inputs.dataset_inputs} == {"in", "new"}
    assert "report/index.html" in [file.path for file in client.list_artifacts(ref.run_id, "report")]
    strips = [file.path for file in client.list_artifacts(ref.run_id, "images") if file.path.endswith(".png")]
    assert len(strips) == 3


def test_refused_before_anything_starts(tree: dict[str, Any], tmp_path: Path) -> None:
    lost = {"name": "lost", "checkpoint": "gone.pt"}
    with pytest.raises(RecipeError, match=r"evaluation\.judges\.0\.checkpoint 'gone\.pt' is not a file"):
        check(changed(tree, judges=[lost]), None)
    with pytest.raises(RecipeError, match=r"reward\.judges\.0\.checkpoint 'gone\.pt' is not a file"):
        check(parse_recipe({**tree, "reward": {**tree["reward"], "judges": [lost]}}), None)
    with pytest.raises(EvaluationError, match=r"evaluation\.sets is empty"):
        check(changed(tree, sets={}), None)
    with pytest.raises(EvaluationError, match=r"holds no adapter_config\.json"):
        check(changed(tree), str(tmp_path))
    with pytest.raises(EvaluationError, match=r"data\.frames 2: .* at least 4 frames"):
        check(
            parse_recipe({**tree, "data": {**tree["data"], "frames": 2}, "reward": tree["reward"] | {"segments": 2}}),
            None,
        )
    small = {**tree["data"], "height": 8, "width": 8}
    with pytest.raises(EvaluationError, match=r"data\.height 8, data\.width 8: .* at least 12 pixels"):
        check(parse_recipe({**tree, "data": small}), None)
    with pytest.raises(RecipeError, match=r"evaluation\.judges\.0: 'same' has the weights of 'judge'"):
        check(changed(tree, judges=[{**tree["reward"]["judges"][0], "name": "same"}]), None)
