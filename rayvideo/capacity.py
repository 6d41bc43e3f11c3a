"""What the parts of a recipe reserve, and whether there is a node for each.

Ray lets a task or actor that fits nowhere wait, without a word, for a node that may come or not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import ray

from rayvideo.data.tasks import decoding_bytes
from rayvideo.errors import UserError
from rayvideo.recipe import Recipe
from rayvideo.sections import Evaluation, Judge, Training

Bundle = Mapping[str, float]
Part = Literal["data", "training", "judges", "generation", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)


logger = logging.getLogger(__name__)


class CapacityError(UserError, RuntimeError):
    """No node is large enough or of the right kind, and none can be added."""


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


def check(recipe: Recipe, parts: Iterable[Part], *, may_grow: bool) -> None:
    """Tell which parts of a recipe fit on no node of this Ray.

    Ray keeps to itself which nodes an autoscaler could add, so on a cluster that `may_grow` this is a warning.

    Raises:
        CapacityError: naming the options, what they reserve and what there is; only where no node can be added.
    """
    lacking = misfits(recipe, parts, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if lacking and not may_grow:
        raise CapacityError("; ".join(lacking))
    for text in lacking:
        logger.warning(
            "%s. Waiting for the autoscaler to start one; that is for ever if this cluster has none, or no node group "
            "like that (docs/clusters.md)",
            text,
        )


def misfits(recipe: Recipe, parts: Iterable[Part], nodes: Sequence[Bundle]) -> list[str]:
    """A sentence for each of the parts that fits on none of the nodes."""
    there = "; ".join(dict.fromkeys(map(_text, nodes)))
    return [
        f"{option}: needs a node with {_text(wanted)}, but there is only: {there}"
        for option, wanted in reservations(recipe, parts).items()
        if not any(_fits(wanted, node) for node in nodes)
    ]


def _worker(options: Training | Evaluation) -> Bundle:
    return {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker, **options.resources}


def _judges(option: str, judges: Iterable[Judge]) -> dict[str, Bundle]:
    return {
        f"{option}.{n}": {"CPU": judge.num_cpus, "GPU": judge.num_gpus, **judge.resources}
        for n, judge in enumerate(judges)
    }


def _fits(wanted: Bundle, node: Bundle) -> bool:
    return all(amount <= node.get(name, 0) for name, amount in wanted.items())


def _text(bundle: Bundle) -> str:
    """CPUs, GPUs, custom resources and memory; without what Ray adds to every node."""
    shown = [
        (n, amount) for n, amount in sorted(bundle.items()) if amount and ":" not in n and n != "object_store_memory"
    ]
    return ", ".join(f"{a / 2**30:.1f} GiB {n}" if n == "memory" else f"{a:g} {n}" for n, a in shown) or "nothing"
