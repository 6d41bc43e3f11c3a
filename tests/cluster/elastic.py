"""A training whose cluster grows and shrinks under it, then the same training on one node.

`python -m tests.cluster.elastic FILE`: a program of its own, because it needs a cluster of its own. FILE is the recipe
as JSON; its judge is `Paced`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from torch import Tensor

from rayvideo.connection import ENVIRONMENT
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.attempts import attempts_of
from rayvideo.sections import Workers
from rayvideo.training.launch import finetune
from tests.cluster.judges import Brightness

PATIENCE_S = 600


class Paced(Brightness):
    """Takes its time, for as long as the file `checkpoint` does not exist."""

    def __init__(self, hurry: str) -> None:
        super().__init__()
        self._hurry = Path(hurry)

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Paced:
        return cls(str(checkpoint))

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        if not self._hurry.exists():
            time.sleep(1.5)
        return super().score(frames, prompts)


def main(recipe: Recipe) -> None:
    os.environ.update(ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    folder, hurry = Path(recipe.storage, "changing"), Path(str(recipe.reward.judges[0].checkpoint))
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(finetune, recipe)

        def wait(what: str, there: Callable[[], bool]) -> None:
            started = time.monotonic()
            while not there():
                if training.done():
                    raise RuntimeError(f"training ended before {what}") from training.exception()
                if time.monotonic() - started > PATIENCE_S:
                    raise TimeoutError(what)
                time.sleep(0.1)
            print(f"{time.monotonic() - started:5.1f} s until {what}", flush=True)

        try:
            wait("a step on one node", lambda: steps(folder) > 0)
            node = cluster.add_node(num_cpus=1)
            wait("the state was saved for two workers", lambda: len(checkpoints(folder)) == 1)
            wait("a step on two nodes", lambda: steps(folder) > checkpoints(folder)[0])
            deadline = int((time.time() + 120) * 1000)
            reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
            accepted, message = GcsClient(address=cluster.address).drain_node(node.node_id, reason, "", deadline)
            assert accepted, message
            wait("the state was saved for one worker", lambda: len(checkpoints(folder)) == 2)
            wait("the other one went on", lambda: len(attempts_of(str(folder))) == 3)
            cluster.remove_node(node)
        finally:
            hurry.touch()
        training.result()
    options = recipe.training.model_copy(update={"workers": Workers(max=1)}).with_global_batch(
        recipe.training.global_batch
    )
    tracking = recipe.tracking.model_copy(update={"run_name": "fixed"})
    finetune(recipe.model_copy(update={"training": options, "tracking": tracking}))
    ray.shutdown()
    cluster.shutdown()


def steps(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(state.parent.name.removeprefix("step-")) for state in folder.glob("checkpoints/*/state.json"))


if __name__ == "__main__":
    main(parse_recipe(json.loads(Path(sys.argv[1]).read_text())))
