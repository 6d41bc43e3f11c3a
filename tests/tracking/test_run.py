"""Tracking against a real MLflow on sqlite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rayvideo.errors import RecipeError
from rayvideo.paths import without_login
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.tracking import (
    RunRef,
    Tracker,
    TrackingError,
    create_run,
    find_run,
    open_experiment,
    run_url,
    tracking_uri,
    ui_command,
)


def recipe(storage: Path | str, **tracking: str) -> Recipe:
    captions = {f"set {n} — é": "x" * 60 for n in range(40)}  # more params than one call takes, keys that need cleaning
    return parse_recipe(
        {
            "model": {"path": "m", "lora": {"targets": ["to_q" * 200]}},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}, {"name": "second", "weight": 0.5}]},
            "evaluation": {"sets": captions, "judges": [{"name": f"held_out_{n}"} for n in range(6)]},
            "tracking": tracking,
            "storage": str(storage),
        }
    )


@pytest.fixture(scope="module")
def ref(storage: Path) -> RunRef:
    return create_run(recipe(storage, run_name="first"), storage / "first")


@pytest.fixture
def client(ref: RunRef) -> MlflowClient:
    return MlflowClient(ref.uri)


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)


def test_storage_holds_database_and_artifacts(storage: Path, ref: RunRef, client: MlflowClient) -> None:
    assert sorted(file.name for file in storage.iterdir()) == [".mlflow.db.lock", "mlartifacts", "mlflow.db"]
    assert [file.name for file in storage.parent.iterdir()] == [storage.name]
    assert client.get_run(ref.run_id).info.artifact_uri.startswith((storage / "mlartifacts").as_uri())
    assert list((storage / "mlartifacts").rglob("recipe.yaml"))


def test_whole_recipe_is_logged(ref: RunRef, client: MlflowClient, tmp_path: Path) -> None:
    run = client.get_run(ref.run_id)
    params = run.data.params
    assert params["editing.strength"] == "0.6"
    assert params["training.betas"] == "[0.9, 0.999]"
    assert params["reward.judges.1.weight"] == "0.5"
    assert params["evaluation.judges.5.name"] == "held_out_5"
    assert params["evaluation.sets.set 39 _ _"] == "x" * 60
    assert params["reward.judges.0.options"] == "{}"
    assert len(params["model.lora.targets"]) == 500
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/recipe.yaml")
    assert yaml.safe_load(text)["model"]["lora"]["targets"] == ["to_q" * 200]
    assert parse_recipe(yaml.safe_load(text)).tracking.run_name == "first"


def test_commit_and_versions_are_tagged(ref: RunRef, client: MlflowClient) -> None:
    run = client.get_run(ref.run_id)
    assert run.info.run_name == "first"
    assert run.data.tags["version.mlflow"] == mlflow.__version__
    assert run.data.tags["version.python"].startswith("3.")
    assert len(run.data.tags["mlflow.source.git.commit"].removesuffix("-dirty")) == 40


def test_metrics_arrive_with_their_steps(ref: RunRef, client: MlflowClient) -> None:
    tracker = Tracker(ref)
    for step in range(250):
        tracker.log(step, {"reward": step / 10, "raw/judge": 0.25, "odd: name é": float("nan")})
    tracker.flush()
    history = client.get_metric_history(ref.run_id, "reward")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(s, s / 10) for s in range(250)]
    assert len(client.get_metric_history(ref.run_id, "raw/judge")) == 250
    assert len(client.get_metric_history(ref.run_id, "odd_ name _")) == 250


def test_steps_that_are_done_again_are_left_out(storage: Path) -> None:
    ref = create_run(recipe(storage, run_name="resumed"), storage / "resumed")
    first = Tracker(ref)
    for step in (1, 2, 3):
        first.log(step, {"reward": step / 10, "loss": 1.0})
        if step == 2:
            first.log(step, {"preview": 1.0})
    first.flush()
    second = Tracker(ref, skip_logged=True)
    assert second.logged("preview", 2)
    assert not second.logged("preview", 3)
    assert not first.logged("reward", 1)
    for step in (2, 3, 4):
        second.log(step, {"reward": step, "loss": step, "added": step})
        second.log(step, {"preview": step})
    second.flush()
    history = MlflowClient(ref.uri).get_metric_history(ref.run_id, "reward")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 4.0)]
    for name, values in {
        "loss": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 4.0)],
        "preview": [(2, 1.0), (3, 3.0), (4, 4.0)],
        "added": [(2, 2.0), (3, 3.0), (4, 4.0)],
    }.items():
        history = MlflowClient(ref.uri).get_metric_history(ref.run_id, name)
        assert sorted((m.step, m.value) for m in history) == values, name


def test_strips_videos_and_folders_are_artifacts(ref: RunRef, client: MlflowClient, tmp_path: Path) -> None:
    tracker = Tracker(ref)
    tracker.strip("new/0 “cat”", 7, clip(0), clip(1), "a <cat> & 'dog'")
    tracker.video("samples/step_000007/cat.mp4", clip(0))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>")
    tracker.artifacts(tmp_path / "report", "report")
    tracker.artifacts(tmp_path / "report" / "index.html")
    images = [a.path for a in client.list_artifacts(ref.run_id, "images")]
    assert any("new~0 _cat_+step+7+" in path and path.endswith(".png") for path in images)
    [video] = client.list_artifacts(ref.run_id, "samples/step_000007")
    assert video.path.endswith("cat.mp4")
    assert video.file_size > 1000
    assert [a.path for a in client.list_artifacts(ref.run_id, "report")] == ["report/index.html"]
    assert "index.html" in [a.path for a in client.list_artifacts(ref.run_id)]


def test_status_follows_the_run(storage: Path) -> None:
    ref = create_run(recipe(storage), storage / "run")
    tracker, client = Tracker(ref), MlflowClient(ref.uri)

    def status() -> str:
        return str(client.get_run(ref.run_id).info.status)

    assert status() == "RUNNING"
    tracker.finish("FAILED")
    assert status() == "FAILED"
    tracker.reopen()
    tracker.tag(attempt=1)
    assert status() == "RUNNING"
    tracker.log(1, {"reward": 1.0})
    tracker.finish()
    assert status() == "FINISHED"
    assert client.get_run(ref.run_id).data.tags["attempt"] == "1"
    assert client.get_run(ref.run_id).data.metrics["reward"] == 1.0
    assert client.get_run(ref.run_id).info.run_name == "run"


def test_lost_metrics_are_an_error_and_the_run_is_closed(storage: Path) -> None:
    ref = create_run(recipe(storage), storage / "run")
    tracker = Tracker(ref)
    tracker.log(2**70, {"x": 1.0})  # more than MLflow takes
    with pytest.raises(MlflowException):
        tracker.finish()
    assert MlflowClient(ref.uri).get_run(ref.run_id).info.status == "FINISHED"


def test_runs_are_found_again(storage: Path) -> None:
    ours = recipe(storage)
    ref = create_run(ours, storage / "run")
    assert find_run(ours, ref.run_id) == ref
    with pytest.raises(TrackingError, match="run nosuchrun"):
        find_run(ours, "nosuchrun")


def test_experiments_are_opened_again(storage: Path, ref: RunRef) -> None:
    assert open_experiment(recipe(storage)) == (ref.uri, ref.experiment_id)


def test_a_database_is_no_way_to_artifacts_behind_a_server(storage: Path, client: MlflowClient) -> None:
    experiment = client.create_experiment("served", "mlflow-artifacts:/7")  # as a server with its defaults makes them
    run = client.create_run(experiment).info.run_id
    refusal = r"made by an MLflow server, which alone .*\(mlflow-artifacts:/7.*\); name the server in tracking\.uri or"
    with pytest.raises(TrackingError, match=f"experiment 'served' was {refusal}"):
        open_experiment(recipe(storage, experiment="served"))
    with pytest.raises(TrackingError, match=f"run {run} was {refusal}"):
        find_run(recipe(storage, experiment="served"), run)


def test_a_deleted_experiment_is_named_with_its_mend(storage: Path, client: MlflowClient) -> None:
    experiment = client.create_experiment("gone", (storage / "mlartifacts").as_uri())
    client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match="'gone' is deleted; restore it with `.*`, or name") as refusal:
        create_run(recipe(storage, experiment="gone"), storage / "run")
    command = str(refusal.value).split("`")[1]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, env=environment, check=True)
    create_run(recipe(storage, experiment="gone"), storage / "run")


def test_where_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(recipe("s3://bucket/runs", uri="http://server:5000")) == "http://server:5000"
    with pytest.raises(RecipeError, match=r"tracking\.uri.*s3://bucket"):
        tracking_uri(recipe("s3://bucket/runs"))
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(recipe("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///relative.db")
    assert tracking_uri(recipe("runs")) == f"sqlite:///{tmp_path}/relative.db"


def test_logins_stay_private(tmp_path: Path, ref: RunRef) -> None:
    assert "secret" not in json.dumps(RunRef("https://me:secret@server:1/x", "1", "2").shareable())
    assert ui_command("https://me:secret@server:1/x") == "open https://server:1/x"
    assert run_url(RunRef("https://me:secret@server:1/x/", "1", "2")).startswith(
        "https://server:1/x/#/experiments/1/runs/2/"
    )
    assert run_url(ref).startswith(f"http://127.0.0.1:5000/#/experiments/{ref.experiment_id}/runs/{ref.run_id}/")
    database = f"sqlite:///{tmp_path}/private.db"
    assert ui_command(database).endswith(f"mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri {database}")
    assert "secret" not in ui_command("postgresql://me:secret@host/runs")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:s/e?c#r@host:5432/runs", "postgresql://host:5432/runs"),
        ("postgresql://me:p@ss@host/runs", "postgresql://host/runs"),
        ("postgresql+psycopg2://me@host/runs", "postgresql+psycopg2://host/runs"),
        (
            "postgresql://host/runs?user=me&password=secret&sslmode=require",
            "postgresql://host/runs?user=me&password=***&sslmode=require",
        ),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://host/#/experiments/1", "http://host/#/experiments/1"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)
def test_only_the_login_is_left_out(uri: str, shown: str) -> None:
    assert without_login(uri) == shown
