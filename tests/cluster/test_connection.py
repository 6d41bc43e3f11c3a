"""A Ray of our own on a machine that makes it hard, and a cluster that does not let a job in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

ROOT = Path(__file__).parents[2]
START = """
import os, ray
from rayvideo.errors import UserError
from tests.test_connection import RECIPE, start_ray
try:
    start_ray(RECIPE)
except UserError as error:
    print(f"error: {error}")
else:
    # With an environment of its own, as Ray Train gives to its controller.
    elsewhere = ray.remote(runtime_env={"env_vars": {"A": "1"}})(lambda: os.nice(0))
    nice = ray.get(elsewhere.remote())
    print("niceness added:", nice - os.nice(0))
    ray.shutdown()
"""


def start(python: str = sys.executable, **environment: str) -> str:
    """The last line of a process that starts Ray with nothing in its environment that Ray's test process put there."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [python, "-c", START],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()[-1]


def test_ray_starts_in_odd_places_and_its_workers_are_not_nice(tmp_path):
    """Without a home, below a long TMPDIR, by a Python whose path has a space."""
    folder = Path("/tmp", "x" * 100)
    venv.create(tmp_path / "a b", symlinks=True)
    (packages,) = (tmp_path / "a b").glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    python = str(tmp_path / "a b/bin/python")
    assert start(python, HOME="/dev/null/home", TMPDIR=str(folder)) == "niceness added: 0"
    assert not folder.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_does_not_let_a_job_in():
    address = ray.get_runtime_context().gcs_address
    token = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for environment in (token, {**token, "RAY_AUTH_TOKEN": "", "HOME": "/dev/null/home"}, {"RAY_ADDRESS": address}):
        assert start(**environment).startswith(
            f"error: RAY_ADDRESS={address}: the cluster asks for a token, and this process has none or another. Set "
        )


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_of_another_version():
    known = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    other = {**json.loads(known), "ray_version": "2.40.0"}
    _internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(other).encode(), namespace=KV_NAMESPACE_CLUSTER)
    try:
        said = start(
            **{name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if name in os.environ},
            RAY_ADDRESS=ray.get_runtime_context().gcs_address,
        )
    finally:
        _internal_kv_put(CLUSTER_METADATA_KEY, known, namespace=KV_NAMESPACE_CLUSTER)
    assert "Version mismatch: The cluster was started with: Ray: 2.40.0 " in said
