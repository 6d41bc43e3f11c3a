"""Runs that are there are found by a query, and given files without being opened again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.tracking import Tracker, TrackingError, attach, create_run, run_folders, tracking_uri


def recipe(storage: Path, name: str, experiment: str) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "tracking": {"run_name": name, "experiment": experiment},
            "storage": str(storage),
        }
    )


def test_runs_of_all_experiments_are_found_in_their_order(storage: Path) -> None:
    for name, experiment in (("one", "search-a"), ("two", "search-b")):
        create_run(recipe(storage, name, experiment), storage / name)
    uri = tracking_uri(recipe(storage, "one", "search-a"))
    query = "params.tracking.experiment LIKE 'search-%'"
    assert run_folders(uri, query) == [str(storage / "one"), str(storage / "two")]
    assert run_folders(uri, f"{query} AND attributes.run_name = 'two'") == [str(storage / "two")]
    with pytest.raises(TrackingError, match="MLflow query 'nonsense' finds nothing"):
        run_folders(uri, "nonsense")


def test_a_finished_run_is_given_a_file(storage: Path, tmp_path: Path) -> None:
    ref = create_run(recipe(storage, "given", "attach"), storage / "given")
    Tracker(ref).finish()
    (tmp_path / "page.html").write_text("<!doctype html>")
    attach(ref, tmp_path / "page.html", "comparisons")
    client = MlflowClient(ref.uri)
    assert [file.path for file in client.list_artifacts(ref.run_id, "comparisons")] == ["comparisons/page.html"]
    assert client.get_run(ref.run_id).info.status == "FINISHED"
    with pytest.raises(TrackingError, match="can't be read"):
        attach(dataclasses.replace(ref, run_id="0" * 32), tmp_path / "page.html", "comparisons")


def test_a_database_that_is_gone_is_not_made_anew(storage: Path, tmp_path: Path) -> None:
    ref = create_run(recipe(storage, "gone", "attach"), storage / "gone")
    gone = dataclasses.replace(ref, uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="no such database"):
        attach(gone, tmp_path / "page.html", "comparisons")
    assert list(tmp_path.iterdir()) == []
