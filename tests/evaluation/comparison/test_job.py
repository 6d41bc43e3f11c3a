"""jobs/compare.py as a person runs it: the page, the table, the votes read back, and MLflow."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rayvideo.recipe import parse_recipe
from rayvideo.tracking import RunRef, Tracker, create_run
from tests.documents import ROOT
from tests.evaluation.comparison.folders import MANY, write_run


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def compare(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/compare.py", *words])
    runpy.run_path(str(ROOT / "jobs/compare.py"), run_name="__main__")


def tracked(storage: Path, name: str) -> RunRef:
    """A finished MLflow run."""
    recipe = {
        "model": {"path": "m"},
        "data": {"manifest": "clips.txt"},
        "reward": {"judges": [{"name": "judge"}]},
        "tracking": {"run_name": name},
        "storage": str(storage),
    }
    with Tracker(create_run(parse_recipe(recipe), storage / name)) as tracker:
        return tracker.ref


def test_page_votes_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    refs = [tracked(storage, name) for name in ("first", "second")]
    for ref, gain in zip(refs, (0.1, 0.2), strict=True):
        name = ("first", "second")[refs.index(ref)]
        write_run(storage, name, gain=gain, captions=MANY, mlflow=dataclasses.asdict(ref))
    compare(monkeypatch, "--storage", str(storage), "first", refs[1].run_id)
    said = capsys.readouterr().out
    path = storage / "comparisons" / "first-second.html"
    assert f"Page: {path}" in said
    assert re.search(r"judge +│ 0.3255 │ \+0.1000 \[\+0.1000, \+0.1000\] better", said)
    client = MlflowClient(refs[0].uri)
    for ref in refs:
        assert [file.path for file in client.list_artifacts(ref.run_id, "comparisons")] == [
            "comparisons/first-second.html"
        ]
        assert client.get_run(ref.run_id).info.status == "FINISHED"

    # What the page's script writes when a person prefers the second run's clip in all but one trial.
    found = re.search(r'id="trials">(.*?)</script>', path.read_text())
    assert found
    blind = json.loads(found[1])
    votes = [
        {**trial, "choice": "left" if (trial["left"]["run"] == "second") == (n > 0) else "right"}
        for n, trial in enumerate(blind["trials"])
    ]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"version": 1, "seed": blind["seed"], "runs": blind["runs"], "votes": votes}))
    monkeypatch.chdir(tmp_path)
    compare(monkeypatch, "--votes", str(file))  # the file names the runs
    won = "second over first: 83% (44% to 97%) of 6 blind votes: 5 for it, 1 against, 0 ties"
    assert won in capsys.readouterr().out
    assert "What people said" in (tmp_path / "runs" / "comparisons" / "first-second.html").read_text()


def test_the_page_is_written_without_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "first")
    with caplog.at_level(logging.WARNING):
        compare(monkeypatch, "first", "first:base", "--storage", str(tmp_path), "--out", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").is_file()
    assert "the page is not in MLflow: sqlite:////nowhere/mlflow.db: there is no such database" in caplog.text


def test_what_can_not_be_compared_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", seeds=(5,))
    with pytest.raises(SystemExit) as stop:
        compare(monkeypatch, "first", "second", "--storage", str(tmp_path))
    assert str(stop.value.code).startswith("error: first and second have no clip in common")
    with pytest.raises(SystemExit) as stop:
        compare(monkeypatch)
    assert str(stop.value.code).startswith("error: which runs?")
    assert not (tmp_path / "comparisons").exists()
