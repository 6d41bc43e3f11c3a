"""An evaluation in MLflow: curves from base to tuned, strips by step, and the captions that it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from rayvideo.evaluation.metrics import measure
from rayvideo.evaluation.publish import curves, track
from rayvideo.recipe import Recipe
from rayvideo.tracking import RunRef, Tracker, create_run
from rayvideo.tracking.charts import MEASURES
from tests.evaluation.test_report import comparison, recipe  # noqa: F401


@pytest.fixture
def ref(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRef:  # noqa: F811
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return create_run(recipe.model_copy(update={"storage": str(tmp_path)}), tmp_path / "run")


def test_figures_lead_from_base_to_tuned_and_on(recipe: Recipe, ref: RunRef, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "report").mkdir(exist_ok=True)
    (tmp_path / "clips.parquet").touch()
    client = MlflowClient(ref.uri)
    for step, held_out in ((20, 0.25), (40, 0.2)):
        track(recipe, comparison(tmp_path, held_out=held_out), tmp_path, Tracker(ref), step)

    def curve(name: str) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(ref.run_id, name)}

    assert curve("2-held-out/eval.new.held_out") == {0: 0.3, 20: 0.25, 40: 0.2}
    gains = curve("2-held-out/eval.new.held_out.gain_in_base_std")
    assert gains == {0: 0, 20: pytest.approx(-1), 40: pytest.approx(-2)}
    worse = "metrics.`2-held-out/eval.new.held_out.gain_in_base_std` < -1.5"
    assert [run.info.run_id for run in client.search_runs([ref.experiment_id], worse)] == [ref.run_id]
    shown = {name.rpartition("/")[0] for name in client.get_run(ref.run_id).data.metrics}
    assert sorted(shown) == ["1-reward", "2-held-out", "3-motion"]

    strips = [file.path for file in client.list_artifacts(ref.run_id, "images") if file.path.endswith(".png")]
    keys = {path.partition("+step+")[0] for path in strips}
    assert len(keys) == 1  # so that its steps are one slider
    assert keys.pop().startswith("images/4-clips~eval.")
    assert sorted(path.split("+")[2] for path in strips) == ["20", "40"]

    inputs = client.get_run(ref.run_id).inputs.dataset_inputs
    assert [(each.dataset.name, each.tags[0].value) for each in inputs] == [
        (n, "evaluation") for n in ("in_domain", "new")
    ]


def test_an_adapter_of_unknown_steps_stands_after_its_base(
    recipe: Recipe,  # noqa: F811
    ref: RunRef,
    tmp_path: Path,
) -> None:
    (tmp_path / "report").mkdir(exist_ok=True)
    (tmp_path / "clips.parquet").touch()
    track(recipe, comparison(tmp_path, held_out=0.25), tmp_path, Tracker(ref), 0)
    history = MlflowClient(ref.uri).get_metric_history(ref.run_id, "2-held-out/eval.in_domain.held_out")
    assert {point.step: point.value for point in history} == {0: 0.3, 1: 0.25}


def test_the_base_alone_has_no_gain(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    alone = dataclasses.replace(comparison(tmp_path), has_tuned=False)
    assert not [name for name in curves(recipe, alone, "base") if "gain" in name]
    assert curves(recipe, alone, "base")["1-reward/eval.new.judge"] == 0.25


def test_every_measure_has_a_group_of_its_own_kind() -> None:
    """Whatever is not known to be a measure is taken for a judge."""
    assert set(measure(torch.rand(4, 3, 32, 32))) | {"kid", "diversity"} == set(MEASURES)
