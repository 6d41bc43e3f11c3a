"""Ray Train's trainer, made elastic for a global batch that not every number of workers can share.

Three more things differ from Ray Train's: workers save their state before their number changes, signals don't abort
them in the middle of a step, and no actor is started for datasets, of which there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

# Internal: which nodes are being drained. Public lists (`ray.nodes`) show them as alive until they are gone.
from ray._private.state import state as cluster
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer

# Internal: what starts that actor, whose process takes as long as a worker's to import Ray Data. No public option does.
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

# Internal: the policy that chooses the number of workers. The public `ScalingConfig` takes bounds alone, between which
# any number is used, and Ray Train stops workers where they are to change it.
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from rayvideo.training.ray_train import preemption


class ElasticTrainer(TorchTrainer):
    """A `TorchTrainer` with as many workers as the nodes have room for, if it is elastic, but only numbers in `sizes`.

    When that room changes, `fit` returns: the workers have saved their state, and a new `fit` goes on from there.
    """

    def __init__(self, *args: Any, sizes: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self._sizes = sizes

    # Internal: the method that puts the controller's parts together. No public argument takes a scaling policy.
    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = Following(self.scaling_config, self._sizes)
        return super()._initialize_and_run_controller(**parts)

    # Internal: the method that lists what accompanies every run.
    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]

    # Internal: the method that makes Ctrl-C abort the workers. No public option leaves signals to the caller.
    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing: `preemption.on_signals` lets workers finish their step and save their state."""


class Following(ElasticScalingPolicy):
    """Follows the nodes as Ray Train does, but to allowed numbers of workers, and without losing steps."""

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sizes

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Called regularly while workers run. Where Ray Train would stop them in mid-step, ask them to stop."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            for worker in worker_group_state.workers:
                worker.execute_async(preemption.ask)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        # What is reserved may be 20 s old. Nodes that were lost since then have to be left out, because Ray Train would
        # wait for workers that it sends there.
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - cluster.get_draining_nodes().keys()
        room = super()._count_possible_workers({k: v for k, v in reserved_resources.items() if k in nodes})
        return max((size for size in self._sizes if size <= room), default=0)
