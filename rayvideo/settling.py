"""What "auto" becomes: the number formats of a recipe's parts, by the machines that run them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import ray
import torch

from rayvideo.connection import on_this_machine
from rayvideo.errors import RecipeError
from rayvideo.precision import Choice, choose
from rayvideo.recipe import Recipe
from rayvideo.sections import AutoPrecision, Judge

logger = logging.getLogger(__name__)


def settle(recipe: Recipe, model: Literal["training", "evaluation"]) -> Recipe:
    """The recipe with a number format in place of every "auto"; says which, and warns of formats that are emulated.

    Needs a running Ray: on a cluster, a task with the part's resources looks at the machine that will run it.

    Args:
        model: The section whose workers run the denoiser.

    Raises:
        RecipeError: training in fp16 on a CPU that emulates it.
    """
    workers = recipe.training if model == "training" else recipe.evaluation
    choice = _settled("training.precision", recipe.training.precision, workers.gpus_per_worker, workers.resources)
    if model == "training" and choice.precision == "fp16" and choice.slowdown is not None:
        raise RecipeError(
            f"training.precision 'fp16': {choice.device} only emulates it, and DeepSpeed trains in fp16 on hardware "
            "that computes it; set it to auto, or to fp32"
        )
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"precision": choice.precision}),
            "reward": recipe.reward.model_copy(update={"judges": _judges("reward", recipe.reward.judges)}),
            "evaluation": recipe.evaluation.model_copy(
                update={"judges": _judges("evaluation", recipe.evaluation.judges)}
            ),
        }
    )


def _judges(section: str, judges: Sequence[Judge]) -> tuple[Judge, ...]:
    formats = [
        _settled(f"{section}.judges.{n}.dtype", judge.dtype, judge.num_gpus, judge.resources).precision
        for n, judge in enumerate(judges)
    ]
    return tuple(judge.model_copy(update={"dtype": own}) for judge, own in zip(judges, formats, strict=True))


def _settled(key: str, option: AutoPrecision, gpus: float, resources: Mapping[str, float]) -> Choice:
    if option == "fp32" or (option != "auto" and gpus):  # GPUs emulate nothing: no need to look
        return Choice(option, "GPU" if gpus else "CPU", None)
    choice = _look(option, gpus, resources)
    if option == "auto":
        logger.info("%s auto: %s on %s", key, choice.precision, choice.device)
    elif choice.slowdown is not None:
        logger.warning(
            "%s %s: %s only emulates it, in %.1f times the time of fp32; auto or fp32 are faster",
            key,
            option,
            choice.device,
            choice.slowdown,
        )
    return choice


def _look(option: AutoPrecision, gpus: float, resources: Mapping[str, float]) -> Choice:
    device = torch.device("cuda" if gpus else "cpu")
    if on_this_machine():
        return choose(option, device)
    there = ray.remote(num_cpus=0, num_gpus=gpus, resources=dict(resources))(choose)
    return ray.get(there.remote(option, device))
