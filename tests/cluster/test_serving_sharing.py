"""Judges that several runs share: found by name, refused where they differ, gone when the last run is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from rayvideo.rewards import RewardError
from rayvideo.sections import Judge
from rayvideo.serving.pool import NAMESPACE, RewardPool
from tests.cluster.actors import eventually, kill, pid_of

JUDGE = Judge(name="bright", type="tests.cluster.judges:Brightness", weight=2.0)

# Another run: makes the judges, uses them, and stays until its process is killed.
OTHER = """
import sys, time, torch
import ray
from rayvideo.sections import Judge
from rayvideo.serving.pool import RewardPool
ray.init(address=sys.argv[1], log_to_driver=False)
judge = Judge(name="bright", type="tests.cluster.judges:Brightness", weight=0.5)
pool = RewardPool([judge], shared="common")
print(pool.score(torch.full((1, 3, 8, 8), 0.5), ["cat"]).item(), flush=True)
time.sleep(600)
"""


def is_there() -> bool:
    return {"name": "common", "namespace": NAMESPACE} in ray.util.list_named_actors(all_namespaces=True)


def test_judges_outlive_the_run_that_made_them_and_end_with_the_last(ray_cluster: None):
    address = ray.get_runtime_context().gcs_address
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, address], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert other.stdout is not None
        assert float(other.stdout.readline()) == 0.125
        with pytest.raises(
            RewardError, match=r"reward.shared 'common': it serves judges \['bright'\] .*\['dark'\] diff"
        ):
            RewardPool([JUDGE, Judge(name="dark", type="tests.cluster.judges:Redness")], shared="common")
        pool = RewardPool([JUDGE], shared="common")
        pixels = torch.full((1, 3, 8, 8), 0.5)
        assert pool.score(pixels, ["cat"]).item() == 0.5  # the weight is each run's own
    finally:
        other.kill()
        other.wait()
    # The router was the dead run's, and the replica is killed: another one must be started all the same.
    router = ray.get_actor("common", namespace=NAMESPACE)
    (replica,) = [
        ray.get_actor(each["name"], namespace=each["namespace"])
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["name"].startswith("common/")
    ]
    eventually(lambda: ray.get(router.users.remote()) == 1, "the dead run has left")
    kill(pid_of(replica))
    assert pool.score(pixels, ["cat"]).item() == 0.5
    assert is_there()
    pool.close()
    eventually(lambda: not is_there(), "the judges end with the last run")
