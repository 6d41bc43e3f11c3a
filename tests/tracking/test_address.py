"""Addresses that are none are refused as they are read; those of files lead where the file is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.tracking.address import database_in, sqlite_file, tracking_uri
from tests.odd import HAS_QUESTION_MARKS, ODD

BASE = {"model": {"path": "m"}, "data": {"manifest": "l"}, "reward": {"judges": [{"name": "judge"}]}}


def recipe(uri: str | None = None, storage: str = "runs") -> Recipe:
    return parse_recipe({**BASE, "tracking": {"uri": uri}, "storage": storage})


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("./mlruns", r"'\./mlruns' is a folder of files, .* sqlite:////data/mlflow\.db"),
        ("mlruns", "is a folder of files"),
        ("/data/mlruns", "is a folder of files"),
        ("file:///data/mlruns", "is a folder of files"),
        ("file:mlruns", "is a folder of files"),
        ("localhost:5000", "without http:// or https:// ahead of it"),
        ("mlflow.example.com:443/team", "without http:// or https:// ahead of it"),
        ("postgres://me:secret@host/runs", "'postgres://host/runs': .* postgresql://"),
        ("http://:5000", "names no host"),
        ("https://", "names no host"),
        ("http://me:secret@host:port", "'http://host:port' names no host, or a port that is no number"),
        ("postgresql://me:secret@host:port/runs", "names no host, or a port that is no number"),
        ("sqlite://", "'sqlite://': it needs the path of a file"),
        ("sqlite:///:memory:", "needs the path of a file"),
        ("sqlite://runs/mlflow.db", "needs the path of a file, absolute ones after four slashes"),
        ("sqlite:///~nosuchuser/mlflow.db", "knows no home folder ~nosuchuser"),
        ("sqlite:///$HOME/mlflow.db", "environment variables are not filled in"),
    ],
)
def test_what_is_no_address_is_refused(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=f"^tracking.uri.*{words}") as refusal:
        tracking_uri(recipe(uri))
    assert "secret" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RecipeError, match=f"^MLFLOW_TRACKING_URI.*{words}"):
        tracking_uri(recipe())


def test_homes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for read in (recipe("sqlite:///~/mlflow.db"), recipe(storage="~")):
        assert tracking_uri(read) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/mlflow.db")
    assert tracking_uri(recipe()) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("name", ["a b", "a#b", "50%", "50% a", "%20", "who?", "a+b&c=d", "ä", "a@b:c", "~"])
def test_every_folder_has_an_address(name: str, tmp_path: Path) -> None:
    if "?" in name and not HAS_QUESTION_MARKS:
        with pytest.raises(RecipeError, match=r"^storage '.*': this release of SQLAlchemy .* rename it, or name"):
            database_in(str(tmp_path / name))
        return
    uri = database_in(str(tmp_path / name))
    assert sqlite_file(uri) == tmp_path / name / "mlflow.db"
    assert tracking_uri(recipe(uri)) == uri


def test_a_folder_that_is_called_like_a_home_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "$here").mkdir()
    monkeypatch.chdir(tmp_path / "$here")
    assert sqlite_file(tracking_uri(recipe(storage="./~"))) == tmp_path / "$here" / "~" / "mlflow.db"


def test_the_address_of_a_folder_is_printed_for_mlflow(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayvideo.tracking", ODD]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert sqlite_file(done.stdout.removesuffix("\n")) == tmp_path / ODD / "mlflow.db"
    assert [folder.name for folder in tmp_path.iterdir()] == [ODD]
