"""A fine-tuning on a cluster that has no node yet: each part's reservations start the group that it is meant for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_legacy_autoscaling_config_fields

from tests.cluster.test_jobs import BIN, PATIENCE_S, ROOT, free_ports, wait_until
from tests.test_cluster_files import GROUPS, node_types

HEAD = "FAKE_HEAD_NODE_ID"
IDLE_S = 6
JUDGE = {"resources": {"judge": 1}}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_S)]


class Cluster(NamedTuple):
    address: str
    dashboard: str
    token: str

    def groups(self) -> list[str]:
        """The groups of all nodes but the head, told by their custom resources."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        living = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        return [group for resources in living for group, name in GROUPS.items() if name in resources]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head whose autoscaler has the groups of aws.yaml, and starts their nodes as processes on this machine."""
    port, dashboard = free_ports(2)
    kinds = node_types("aws")
    for name, kind in kinds.items():  # the same groups of smaller machines without GPUs
        kind["node_config"] = {}
        kind["resources"] = {key: amount for key, amount in kind["resources"].items() if key != "GPU"}
        kind["resources"]["CPU"] = {"head": 0, "judges": 4}.get(name, 2)
    config = {
        **_generate_legacy_autoscaling_config_fields(),
        "cluster_name": "fake",
        "max_workers": 6,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "tests.cluster.machines.Machines",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "head_node_id": HEAD,
        },
        "available_node_types": {"ray.head.default" if name == "head" else name: kind for name, kind in kinds.items()},
        "head_node_type": "ray.head.default",
    }
    file = tmp_path / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    folder = tempfile.mkdtemp(prefix="rv", dir="/tmp")  # sockets lie in it, whose paths must be short
    options = ["--head", f"--autoscaling-config={file}", f"--port={port}", f"--temp-dir={folder}"]
    options += [f"--dashboard-port={dashboard}", "--num-cpus=0", f"--ray-client-server-port={free_ports(1)[0]}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    token = subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    log = tmp_path / "ray.log"
    with log.open("w") as output:
        start = subprocess.Popen(
            [BIN / "ray", "start", *options], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    cluster = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token)

    def answers() -> bool:
        try:
            return cluster.groups() == []
        except OSError:
            return False

    try:
        assert start.wait(PATIENCE_S) == 0, log.read_text()
        wait_until(answers, log.read_text)
        yield cluster
    finally:
        # Everything that it started is in the session that was made for it.
        subprocess.run(["pkill", "-KILL", "-s", str(start.pid)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_groups_go_from_nothing_to_what_a_recipe_asks_for_and_back(
    cluster: Cluster, tiny_pipeline: Path, tiny_judge: Path, tiny_clips: Path, tmp_path: Path
) -> None:
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    tree: dict[str, Any] = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
        "editing": {"steps": 2},
        "reward": {"judges": [{"name": "hps", "load_timeout_s": PATIENCE_S, **judge, **JUDGE}], "segments": 2},
        "training": {"steps": 1, "workers": 2, "cpus_per_worker": 1, "resources": {"trainer": 4}, "batch_size": 1},
        "tracking": {"run_name": "grown"},
        "storage": str(tmp_path / "runs"),
    }
    tree["data"] |= {"decode_resources": {"data": 1}, "encoder_resources": {"data": 1}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/finetune.py", "--recipe", str(recipe)]

    first: dict[str, float] = {}  # group -> when its first node was seen
    most = dict.fromkeys(GROUPS, 0)

    def look() -> list[str]:
        groups = cluster.groups()
        for group in groups:
            first.setdefault(group, time.monotonic())
            most[group] = max(most[group], groups.count(group))
        return groups

    log = tmp_path / "job.log"
    with log.open("w") as output:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: look() is None or job.poll() is not None, log.read_text)
    finally:
        job.kill()
    assert job.returncode == 0, log.read_text()
    assert "training.…_per_worker: needs a node with 1 CPU, 4 trainer, but there is only: " in log.read_text()
    assert first["judges"] < first["trainers"]
    assert first["data"] < first["trainers"]
    assert most["judges"] == 1
    assert most["trainers"] == 2  # a worker takes all of a node's four
    wait_until(lambda: look() == [], log.read_text)
