"""A database in a folder whose name has what addresses use for other things."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvideo.recipe import parse_recipe
from rayvideo.tracking import open_experiment
from tests.odd import ODD


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests: a new one takes seconds."""
    folder = tmp_path_factory.mktemp("storage") / ODD
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_experiment(
            parse_recipe(
                {
                    "model": {"path": "m"},
                    "data": {"manifest": "clips.txt"},
                    "reward": {"judges": [{"name": "judge"}]},
                    "storage": str(folder),
                }
            )
        )
    return folder
