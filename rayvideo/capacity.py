"""What the parts of a recipe reserve, and whether a cluster has nodes for it or can start some.

Ray lets a task or actor that fits nowhere wait for ever, in the hope of a node that may come; this says so at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import ray
from ray._private.state import state

from rayvideo.data.tasks import decoding_bytes
from rayvideo.errors import UserError
from rayvideo.recipe import Evaluation, Judge, Recipe, Training

Bundle = Mapping[str, float]
Part = Literal["data", "training", "judges", "generation", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)


class CapacityError(UserError, RuntimeError):
    """No node of the cluster, nor of its node groups, is large enough or of the right kind."""


def reservations(recipe: Recipe, parts: Iterable[Part] = PARTS) -> dict[str, Bundle]:
    """What one task, actor or worker of each kind reserves, by the options that say so."""
    data, training, evaluation = recipe.data, recipe.training, recipe.evaluation
    every: dict[Part, dict[str, Bundle]] = {
        "data": {
            "data.decode_…": {"CPU": data.decode_cpus, "memory": decoding_bytes(data), **data.decode_resources},
            "data.encoder_…": {"CPU": data.encoder_cpus, "GPU": data.encoder_gpus, **data.encoder_resources},
        },
        "training": {"training.…_per_worker": _worker(training)},
        "judges": _judges("reward.judges", recipe.reward.judges),
        "generation": {"evaluation.…_per_worker": _worker(evaluation)},
        "held_out": _judges("evaluation.judges", evaluation.judges),
    }
    return {option: bundle for part in parts for option, bundle in every[part].items()}


def custom_resources(recipe: Recipe) -> set[str]:
    """Names of the custom resources that any part of the recipe reserves."""
    return {name for bundle in reservations(recipe).values() for name in bundle} - {"CPU", "GPU", "memory"}


def check(recipe: Recipe, parts: Iterable[Part]) -> None:
    """Refuse a recipe that this Ray can't run, however many nodes its autoscaler adds.

    Raises:
        CapacityError: naming the options, what they reserve and what there is.
    """
    # With an autoscaler of version 2, which is the default, the groups stand in Ray's store, also those without a node.
    config = state.get_cluster_config()
    groups = {group.name: dict(group.resources) for group in config.node_group_configs} if config else {}
    kinds = [node["Resources"] for node in ray.nodes() if node["Alive"]] + list(groups.values())
    for option, wanted in reservations(recipe, parts).items():
        if not any(_fits(wanted, kind) for kind in kinds):
            there = dict.fromkeys(map(_text, kinds))
            raise CapacityError(
                f"{option}: needs {_text(wanted)} on one node, and this cluster has no such node or node group; change "
                f"the recipe, or give a group these resources (docs/clusters.md). There are: {'; '.join(there)}"
            )


def _worker(options: Training | Evaluation) -> Bundle:
    return {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker, **options.resources}


def _judges(option: str, judges: Iterable[Judge]) -> dict[str, Bundle]:
    return {f"{option}.{n}": {"CPU": judge.num_cpus, "GPU": judge.num_gpus} for n, judge in enumerate(judges)}


def _fits(wanted: Bundle, node: Bundle) -> bool:
    return all(amount <= node.get(name, 0) for name, amount in wanted.items())


def _text(bundle: Bundle) -> str:
    """CPUs, GPUs, custom resources and memory; without what Ray adds to every node."""
    shown = [
        (n, amount) for n, amount in sorted(bundle.items()) if amount and ":" not in n and n != "object_store_memory"
    ]
    return ", ".join(f"{a / 2**30:.1f} GiB {n}" if n == "memory" else f"{a:g} {n}" for n, a in shown) or "nothing"
