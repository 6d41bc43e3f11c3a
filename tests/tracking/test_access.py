"""Servers and databases that MLflow can't use, each refused at once and with its mend."""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.tracking import TrackingError, access, find_run, open_experiment, tracking_uri

ROOT = Path(__file__).parents[2]


def recipe(**changes: Any) -> Recipe:
    base = {"model": {"path": "m"}, "data": {"manifest": "l"}, "reward": {"judges": [{"name": "judge"}]}}
    return parse_recipe({**base, **changes})


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """Start a server that answers everything alike; its address, with a login."""
    servers = []

    def start(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://me:secret@127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal_of(uri: str) -> str:
    """What both ways to a run say, but for what they were asked for."""
    asked = recipe(tracking={"uri": uri})
    with pytest.raises(TrackingError) as opening:
        open_experiment(asked)
    with pytest.raises(TrackingError) as finding:
        find_run(asked, "abc")
    told = str(opening.value).partition(" can't be opened: ")[2]
    assert str(opening.value).endswith(f": experiment 'rayvideo' can't be opened: {told}")
    assert str(finding.value).endswith(f": run abc can't be read: {told}")
    assert "secret" not in str(opening.value)
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            401,
            "who are you?",
            r"it refuses this login \(401 Unauthorized: who are you\?\); set MLFLOW_TRACKING_USERNAME",
        ),
        (403, "", r"it refuses this login \(403 Forbidden.*MLFLOW_TRACKING_TOKEN"),
        (404, "<html>not here</html>", r"no MLflow server, or not ready \(404 Not Found\); mend the address"),
        (503, "busy\nnow", r"no MLflow server, or not ready \(503 Service Unavailable: busy now\)"),
        (200, "<html>Welcome</html>", r"no MLflow server, or not ready \(200 OK\)"),
    ],
)
def test_answers_that_are_none_of_mlflow(
    status: int, body: str, words: str, answering: Callable[[int, str], str]
) -> None:

    assert re.search(words, refusal_of(answering(status, body)))


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PATIENCE_S", 1)
    refused = "nobody answers there ([Errno 111] Connection refused); start the server, or mend the address"
    assert refusal_of("http://me:secret@127.0.0.1:9") == refused
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "nobody answers there (no answer within 1 s)" in refusal_of(f"http://me:secret@127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [
        ("postgresql+psycopg", "psycopg", "'psycopg[binary]'"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_a_driver_that_is_not_installed(kind: str, module: str, package: str) -> None:
    told = refusal_of(f"{kind}://me:secret@127.0.0.1:9/runs")
    assert told == f"its driver is not installed (No module named '{module}'); pip install {package}"


def test_kinds_of_databases_that_mlflow_does_not_know() -> None:
    told = refusal_of("oracle://me:secret@127.0.0.1:9/runs")
    assert "unsupported URI 'oracle://127.0.0.1:9/runs'" in told
    assert "name a server such as" in told


@pytest.fixture
def copy(storage: Path, tmp_path: Path) -> Path:
    """A copy of a database that MLflow made."""
    shutil.copy(storage / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path / "mlflow.db"


def stamp(database: Path, revision: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def told_of(storage: Path) -> str:
    with pytest.raises(TrackingError) as refusal:
        open_experiment(recipe(storage=str(storage)))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_database_of_an_older_mlflow_is_left_as_it_is(copy: Path) -> None:
    stamp(copy, "bd07f7e963c5")  # of 2023
    with sqlite3.connect(copy) as connection:
        connection.execute("DROP TABLE jobs")  # so MLflow would migrate it without being asked
    before = copy.read_bytes()
    told = told_of(copy.parent)
    assert "an older MLflow made the database" in told
    assert f"keep a copy of it and run `mlflow db upgrade sqlite:///{copy}`" in told
    assert copy.read_bytes() == before


def test_a_database_of_a_newer_mlflow(copy: Path) -> None:
    stamp(copy, "0123456789ab")
    assert "a newer MLflow than this one, 3." in told_of(copy.parent)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("notes")
    assert "the file is no sqlite database" in told_of(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(access.SIGNATURE + b"\0" * 4096)
    assert "can't be opened: " in told_of(tmp_path)
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / "mlflow.db").mkdir()
    assert "it can't be made or written ([Errno 21] Is a directory" in told_of(tmp_path)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "it can't be made or written ([Errno 17] File exists" in told_of(tmp_path / "file")
    assert "it can't be made or written ([Errno " in told_of(Path("/proc/nothing/here"))


def test_an_environment_whose_migrations_mlflow_does_not_find(tmp_path: Path) -> None:
    (tmp_path / "50% of it").symlink_to(Path(mlflow.__file__).parents[1])
    code = "from rayvideo.tracking import access; access.connect('sqlite:///new/mlflow.db')"
    places = {"PYTHONPATH": f"{tmp_path / '50% of it'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=places, capture_output=True, text=True)
    told = done.stderr.strip().split("\n")[-1]
    assert "AccessError: MLflow opens no database where it is installed below a folder with % in its name" in told
    assert "50% of it/mlflow/__init__.py); move the environment" in told


FIRST = """
import sys
from rayvideo.recipe import parse_recipe
from rayvideo.tracking import create_run
tree = {"model": {"path": "m"}, "data": {"manifest": "l"}, "reward": {"judges": [{"name": "j"}]}}
recipe = parse_recipe({**tree, "storage": sys.argv[1]})
print("ready", flush=True)
input()
print(create_run(recipe, sys.argv[2]).run_id)
"""


def test_three_first_runs_at_once(tmp_path: Path) -> None:
    storage = tmp_path / "new" / "storage"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, str(storage), f"run{n}"],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(3)
    ]  # fmt: skip
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    told = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], [error for _, error in told]
    client = MlflowClient(tracking_uri(recipe(storage=str(storage))))
    experiment = client.get_experiment_by_name("rayvideo")
    assert {run.info.run_id for run in client.search_runs([experiment.experiment_id])} == {
        output.strip() for output, _ in told
    }
