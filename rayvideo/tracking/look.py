"""How to look at runs: the line that opens MLflow, and the page of a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rayvideo.paths import without_login
from rayvideo.tracking.address import is_server
from rayvideo.tracking.run import RunRef

HOST, PORT = "127.0.0.1", "5000"  # of the UI that `ui_command` starts


def ui_command(uri: str) -> str:
    """The one line that opens MLflow on a tracking URI."""
    if is_server(uri):
        return f"open {without_login(uri)}"
    program = Path(sys.executable).with_name("mlflow")
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return shlex.join([str(shown), "ui", "--host", HOST, "--port", PORT, "--backend-store-uri", without_login(uri)])


def run_url(ref: RunRef) -> str:
    """The page of a run, once MLflow is open; it asks for the UI's view of trainings, which is not its first."""
    server = without_login(ref.uri) if is_server(ref.uri) else f"http://{HOST}:{PORT}"
    page = f"experiments/{ref.experiment_id}/runs/{ref.run_id}/model-metrics"
    return f"{server.rstrip('/')}/#/{page}?workflowType=machine_learning"
