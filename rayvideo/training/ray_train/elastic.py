"""Ray Train, for a global batch that not every number of workers can share, and runs that are saved before they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import state as cluster
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from rayvideo.training.ray_train import preemption


class Trainer(TorchTrainer):
    """Ray Train's trainer, that leaves signals alone; elastic with any of `sizes` workers that the nodes have room for.

    When that room changes, `fit` returns: the workers have saved their state, and a new `fit` goes on from there.
    """

    def __init__(self, *args: Any, sizes: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self._sizes = sizes

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        if self.scaling_config.elasticity_enabled:  # there is no public way to choose a policy
            parts["scaling_policy"] = Following(self.scaling_config, self._sizes)
        return super()._initialize_and_run_controller(**parts)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray Train would abort the workers in mid-step; `preemption.on_signals` lets them save their state."""


class Following(ElasticScalingPolicy):
    """Follows the nodes as Ray Train does, but to allowed numbers of workers, and without losing steps."""

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sizes

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Ray Train would stop the workers where they are, and go on from the newest checkpoint."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            for worker in worker_group_state.workers:
                worker.execute_async(preemption.ask)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        # The reservation is up to 20 s old, and a worker that is sent to a lost node is waited for.
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - cluster.get_draining_nodes().keys()
        room = super()._count_possible_workers({k: v for k, v in reserved_resources.items() if k in nodes})
        return max((size for size in self._sizes if size <= room), default=0)
