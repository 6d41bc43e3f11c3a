"""The four jobs, submitted to a cluster of cluster/local.sh: they end well, fail with a message, and stop cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.documents import block_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_S)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def local_sh(verb: str, environment: dict[str, str]) -> str:
    done = subprocess.run(["cluster/local.sh", verb], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of whoever talks to a cluster that runs only for this file."""
    folder = tmp_path_factory.mktemp("local")
    ray_folder = tempfile.mkdtemp(prefix="rv", dir="/tmp")  # sockets lie in it, whose paths must be short
    ports = dict(zip(("RAY_PORT", "DASHBOARD_PORT", "MLFLOW_PORT"), map(str, free_ports(3)), strict=True))
    places = {"RAY_FOLDER": ray_folder, "STATE": str(folder), "STORAGE": str(folder / "runs"), "BIN": str(BIN)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = {**inherited, **ports, **places, "CPUS": "8"}
    local_sh("start", environment)
    address = f"http://127.0.0.1:{ports['DASHBOARD_PORT']}"
    yield {**environment, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    assert local_sh("stop", environment).split("\n")[:2] == ["ray ended", "mlflow ended"]
    assert local_sh("status", environment) == "ray does not run\nmlflow does not run\n"
    shutil.rmtree(ray_folder)


@pytest.fixture(scope="module")
def jobs(cluster: dict[str, str]) -> JobSubmissionClient:
    token = subprocess.run([BIN / "ray", "get-auth-token"], env=cluster, capture_output=True, text=True, check=True)
    return JobSubmissionClient(cluster["RAY_ADDRESS"], headers={"Authorization": f"Bearer {token.stdout.strip()}"})


@pytest.fixture(scope="module")
def recipe(tiny_pipeline: Path, tiny_judge: Path, tiny_clips: Path, cluster: dict[str, str]) -> str:
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    captions = Path(cluster["STATE"], "captions.txt")
    captions.write_text("red ball\n")
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
        "editing": {"steps": 2},
        "reward": {"judges": [{"name": "hps", **judge}], "segments": 2},
        "training": {"steps": 2, "batch_size": 1, "resources": {"trainer": 1}, "checkpoint_every": 2},
        "evaluation": {"sets": {"new": str(captions)}, "steps": 2, "previews": 1, "resources": {"trainer": 1}},
        "storage": cluster["STORAGE"],
    }
    tree["data"] |= {"decode_resources": {"data": 1}, "encoder_resources": {"trainer": 1}}  # type: ignore[operator]
    # A class of the user's, beside a recipe that is not in the upload.
    Path(cluster["STATE"], "my_rewards.py").write_text(block_of("README.md", "python", "(Reward)"))
    tree["evaluation"] |= {"judges": [{"name": "blue", "type": "my_rewards:Blueness"}]}  # type: ignore[operator]
    file = Path(cluster["STATE"], "recipe.yaml")
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@pytest.fixture(scope="module")
def submit(jobs: JobSubmissionClient, recipe: str) -> Callable[..., str]:
    def start(script: str, *arguments: str) -> str:
        command = f"python jobs/{script}.py --recipe {recipe} {' '.join(arguments)}"
        return jobs.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)})

    return start


def wait_until(true: Callable[[], Any], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)


def log_of_success(jobs: JobSubmissionClient, job: str) -> str:
    wait_until(lambda: jobs.get_job_status(job).is_terminal(), lambda: jobs.get_job_logs(job))
    log = jobs.get_job_logs(job)
    assert jobs.get_job_status(job) == JobStatus.SUCCEEDED, log
    assert "\r" not in log
    assert "TrainingReport" not in log  # Ray Train's own lines, one for each checkpoint and worker
    return log


def test_all_four_succeed_and_tell_how_far_they_are(cluster, jobs, submit, recipe, tmp_path):
    # Two at a time: more want more memory than a small machine has.
    prepare = submit("prepare", "--out", str(tmp_path / "latents"))
    captions = Path(recipe).with_name("captions.txt")
    generate = submit("generate", "--captions", str(captions), "--out", str(tmp_path / "clips"))
    log = log_of_success(jobs, prepare)
    assert re.search(r"^encoding clips: 6/6 clips in [\d:]+, [\d:]+ left, dropped=0$", log, re.MULTILINE)
    assert len(re.findall("encoding clips: 6/6", log)) == 1
    assert re.search(r"^generating: 1/1 clips", log_of_success(jobs, generate), re.MULTILINE)
    assert list((tmp_path / "clips" / "clips").glob("*.mp4"))

    latents = ("data.manifest=null", f"data.prepared={tmp_path / 'latents'}")
    finetune = submit("finetune", *latents, "tracking.run_name=one")
    evaluate = submit("evaluate", "--base-only", "--out", str(tmp_path / "evaluated"))
    assert re.search(r"^fine-tuning: 2/2 steps .*hps=[\d.-]+$", log_of_success(jobs, finetune), re.MULTILINE)
    assert "Report: " in log_of_success(jobs, evaluate)
    run = Path(cluster["STORAGE"], "one")
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mlflow"]["uri"] == f"http://127.0.0.1:{cluster['MLFLOW_PORT']}"  # Ray's environment names it
    assert MlflowClient(summary["mlflow"]["uri"]).get_run(summary["mlflow"]["run_id"]).info.status == "FINISHED"


def test_what_a_user_can_mend_fails_with_a_message(cluster, recipe):
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "jobs/finetune.py"]
    done = subprocess.run(
        [*command, "--recipe", recipe, "storage=runs"], cwd=ROOT, env=cluster, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout
    assert re.search(r"^error: storage 'runs' is relative", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout


def test_stopped_it_closes_its_run_and_frees_the_cluster(cluster, jobs, submit):
    job = submit("finetune", "training.steps=100000", "tracking.run_name=long")
    metrics = Path(cluster["STORAGE"], "long", "metrics.jsonl")
    wait_until(
        lambda: jobs.get_job_status(job).is_terminal() or (metrics.is_file() and metrics.read_text()),
        lambda: jobs.get_job_logs(job),
    )
    assert jobs.get_job_status(job) == JobStatus.RUNNING, jobs.get_job_logs(job)
    jobs.stop_job(job)
    wait_until(lambda: jobs.get_job_status(job).is_terminal(), lambda: jobs.get_job_logs(job))
    assert jobs.get_job_status(job) == JobStatus.STOPPED
    ref = json.loads(metrics.with_name("summary.json").read_text())["mlflow"]
    assert MlflowClient(ref["uri"]).get_run(ref["run_id"]).info.status == "KILLED"
    listed = [str(BIN / "ray"), "list", "actors", "--filter", "state=ALIVE", "--format", "json"]

    def living() -> list[str]:
        out = subprocess.run(listed, env=cluster, capture_output=True, text=True, check=True).stdout
        return [actor["class_name"] for actor in json.loads(out or "[]")]

    # Those of Ray Data live as long as the cluster.
    wait_until(lambda: not {"RewardActor", "TrainController"} & set(living()), lambda: str(living()))
