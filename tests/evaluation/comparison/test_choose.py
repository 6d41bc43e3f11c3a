"""A run is found by its folder, its name, MLflow's id or a query; what names none is refused with what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.choose import choose
from rayvideo.evaluation.comparison.runs import read_run
from rayvideo.recipe import parse_recipe
from rayvideo.tracking import RunRef, TrackingError, create_run
from tests.evaluation.comparison.folders import write_run


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def folders(words: list[str], storage: Path) -> dict[str, str]:
    return {label: side.word for label, side in choose(words, str(storage)).items()}


def test_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write_run(tmp_path / "runs", "first"), tmp_path / "runs" / "lr=1e-4"
    write_run(tmp_path / "runs", "second").rename(second)
    elsewhere = write_run(tmp_path / "else", "first")
    monkeypatch.chdir(tmp_path)
    assert folders(["first", "lr=1e-4", "first"], Path("runs")) == {"first": str(first), "lr=1e-4": str(second)}
    assert folders(["first:base", "runs/first"], Path("runs")) == {"first:base": f"{first}:base", "first": str(first)}
    both = folders(["first", "else/first"], Path("runs"))
    assert both == {str(first): str(first), str(elsewhere): str(elsewhere)}  # one name, so whole paths


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first", "secnd"], "no run 'secnd'.*runs there: first"),
        (["first"], "1 run to compare: name two or more"),
        (["first", "first"], "1 run to compare"),
    ],
)
def test_what_names_no_two_runs_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    write_run(tmp_path, "first")
    with pytest.raises(EvaluationError, match=message):
        choose(words, str(tmp_path))


def test_more_than_a_page_can_show_is_refused(tmp_path: Path) -> None:
    names = [write_run(tmp_path, f"run-{n}").name for n in range(7)]
    with pytest.raises(EvaluationError, match="at most 6"):
        choose(names, str(tmp_path))


def test_runs_of_mlflow(tmp_path: Path) -> None:
    refs: list[RunRef] = []
    for name, lr in (("first", 1e-4), ("second", 2e-4), ("unfinished", 1e-4)):
        recipe = {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "training": {"lr": lr},
            "tracking": {"run_name": name},
            "storage": str(tmp_path),
        }
        refs.append(create_run(parse_recipe(recipe), tmp_path / name))
        if name != "unfinished":
            write_run(tmp_path, name)
    assert list(folders(["tags.run_folder LIKE '%'"], tmp_path)) == ["first", "second"]
    assert list(folders([refs[1].run_id, "params.training.lr = '0.0001'"], tmp_path)) == ["second", "first"]
    with pytest.raises(TrackingError, match="finds nothing"):
        choose(["nonsense ="], str(tmp_path))
    with pytest.raises(EvaluationError, match="no run '0000"):
        choose(["0" * 32, "first"], str(tmp_path))


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no such database"):
        choose(["metrics.reward > 1"], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_comparison_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first")
    write_run(tmp_path, "second")
    sides = choose(["first", "second"], str(tmp_path))
    (folder / "clips.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match="clips.parquet is damaged"):
        read_run("first", sides["first"])
    (folder / "clips.parquet").unlink()
    with pytest.raises(EvaluationError, match="run jobs/evaluate.py on it first"):
        read_run("first", sides["first"])
