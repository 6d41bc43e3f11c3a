"""Judges' machine lost while it works, in a cluster of several nodes; test_serving_node.py runs it as a program."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

from rayvideo.sections import Judge
from rayvideo.serving.pool import RewardPool


def main(hold: Path) -> None:
    """Score, lose the judges' node with one answer ready and another on its way, add a node, and compare."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1, resources={"judge": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    log = hold.with_suffix("")
    judge = Judge(
        name="far", type="tests.cluster.judges:Logged", checkpoint=str(log), resources={"judge": 1}, timeout_s=500
    )
    pool = RewardPool([judge], name="far")
    pixels = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))  # too large for a message
    captions = ["cat"] * len(pixels)
    expected = pool.score(pixels.requires_grad_(), captions)
    (slope,) = torch.autograd.grad(expected.sum(), pixels)

    ready = pool.submit(pixels, captions)
    ray.wait(ready.sent.calls, timeout=300)
    hold.touch()
    away = pool.submit(pixels, captions)
    while len(log.read_text().splitlines()) < 3:  # a pass for each request: the third one holds
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    hold.unlink()
    cluster.add_node(num_cpus=1, resources={"judge": 1})
    for pending in (ready, away):
        scores = pool.result(pending)
        assert torch.equal(scores, expected)
        assert torch.equal(torch.autograd.grad(scores.sum(), pixels)[0], slope)
    print("the same numbers")
    pool.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
