"""A sweep on a real Ray: trials below their sweep in MLflow, one that is ended early, and the same command again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from rayvideo.errors import RecipeError
from rayvideo.runs.attempts import attempts_of
from rayvideo.runs.checkpoints import name_of
from rayvideo.sweep.options import Sweep
from rayvideo.sweep.run import best, plan, run
from rayvideo.sweep.trial import Trial
from rayvideo.tracking import tracking_uri

pytestmark = pytest.mark.usefixtures("ray_cluster")

HELD_OUT = "2-held-out/preview.in.dark"


@pytest.fixture(scope="module")
def recipe(tiny_pipeline: Path, tiny_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose held-out judge likes what its training judge does not: the faster a trial learns, the worse."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "captions.txt").write_text("red ball\n")
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
        "editing": {"steps": 5},
        "reward": {"judges": [{"name": "bright", "type": "tests.cluster.judges:Brightness"}], "segments": 2},
        "training": {"steps": 2, "precision": "fp32", "warmup_steps": 0, "checkpoint_every": 1},
        "evaluation": {
            "sets": {"in": str(folder / "captions.txt")},
            "previews": 1,
            "every": 1,
            "steps": 2,
            "judges": [{"name": "dark", "type": "tests.cluster.judges:Darkness"}],
        },
        "tracking": {"run_name": "lr"},
        "storage": str(folder / "runs"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


# The second is far from done when it is ended.
SWEEP = Sweep(vary={"training": [{"lr": 1e-4, "steps": 2}, {"lr": 3e-2, "steps": 1000}]}, keep=2.0)


def sweep(recipe: Path) -> tuple[list[Trial], list[dict[str, Any]]]:
    shared, trials = plan(str(recipe), [], SWEEP)
    return trials, run(shared, trials, SWEEP)


@pytest.fixture(scope="module")
def swept(recipe: Path, ray_cluster: None) -> tuple[list[Trial], list[dict[str, Any]]]:
    return sweep(recipe)


def test_one_trial_is_done_and_one_is_ended_early(swept):
    trials, found = swept
    assert [(one["name"], one["status"]) for one in found] == [("lr-0", "finished"), ("lr-1", "ended early")]
    assert found[0]["step"] == 2
    assert found[0]["score"] > trials[1].curve(trials[1].tracker())[1]
    assert best(found) == found[0]
    assert Path(trials[0].folder, "adapter", "adapter_model.safetensors").is_file()
    assert json.loads(Path(trials[1].folder, "summary.json").read_text())["finished"] is False


def test_trials_are_children_of_the_sweep_in_mlflow(swept, recipe):
    found = swept[1]
    shared, _ = plan(str(recipe), [], SWEEP)
    folder = Path(shared.storage, "lr")
    client = MlflowClient(tracking_uri(shared))
    parent = client.get_run(json.loads((folder / "run.json").read_text())["run_id"])
    assert (parent.info.run_name, parent.info.status, parent.data.tags["best"]) == ("lr", "FINISHED", "lr-0")
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", order_by=["start_time ASC"]
    )
    assert [(run.info.run_name, run.info.status, run.data.params["training.lr"]) for run in children] == [
        ("lr-0", "FINISHED", "0.0001"),
        ("lr-1", "KILLED", "0.03"),
    ]
    assert [point.step for point in client.get_metric_history(children[0].info.run_id, HELD_OUT)] == [0, 1, 2]
    assert found == json.loads((folder / "summary.json").read_text())["trials"]
    assert len(list((folder / "latents").glob("**/*.parquet"))) > 0, "each trial encoded the clips"


def test_the_same_command_keeps_what_is_done_and_goes_on_with_what_is_not(swept, recipe, caplog):
    trials, before = swept
    # As if the driver had been killed when its first trial had done one step.
    folder = Path(trials[0].folder)
    shutil.rmtree(folder / "checkpoints" / name_of(2))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "finished": False}))
    with caplog.at_level(logging.INFO):
        _, found = sweep(recipe)
    assert found == before
    assert [attempt.from_step for attempt in attempts_of(trials[0].folder)] == [0, 1]
    assert len(attempts_of(trials[1].folder)) == 1, "a trial that was ended early was started again"
    assert "lr-1: step 1" in caplog.text, "what was there before was not replayed"


def test_another_sweep_is_refused_under_the_same_name(swept, recipe):
    shared, trials = plan(str(recipe), [], Sweep(vary={"training.lr": [1e-4]}))
    with pytest.raises(RecipeError, match="begun with other trials"):
        run(shared, trials, SWEEP)
