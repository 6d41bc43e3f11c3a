"""Refuses trainings that can't fit, before judges and workers start."""

from __future__ import annotations

import logging

import ray
import torch

from rayvideo.connection import on_this_machine
from rayvideo.errors import RecipeError
from rayvideo.models import load_model
from rayvideo.planning.choose import on_card
from rayvideo.planning.command import plan_for, settled
from rayvideo.planning.estimate import GIB
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe

ERROR = 0.15
"""By how much a plan may be too high."""

logger = logging.getLogger(__name__)


def refuse_too_large(recipe: Recipe) -> None:
    """Plan a training whose GPUs are in this machine, and weigh the weights of one on CPUs; needs a running Ray.

    What is within a plan's error of what there is, is let through with a warning. On GPUs of other machines nothing is
    said: their memory is not known here.

    Raises:
        RecipeError: it can't fit; names what does.
    """
    recipe = settled(recipe)
    if not recipe.training.gpus_per_worker:
        _refuse_weights(recipe, [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]])
    elif on_this_machine() and torch.cuda.is_available():
        refuse_on_card(recipe, torch.cuda.get_device_properties(0).total_memory)


def refuse_on_card(recipe: Recipe, memory: int) -> None:
    """Refuse what can't fit into a GPU of `memory` bytes.

    Raises:
        RecipeError: naming the cheapest setting that fits.
    """
    plan = plan_for(recipe, memory)
    if plan.fits:
        return
    needed = on_card(recipe, plan.estimate)
    changes = {} if plan.choice is None else plan.choice.changes
    told = " ".join(f"{key}={value}" for key, value in changes.items())
    mend = told or "fewer data.frames, or a smaller data.height and data.width"
    text = f"training needs about {needed / GIB:.1f} GiB on a GPU of {memory / GIB:.1f}; what fits: {mend}"
    if needed * (1 - ERROR) > memory:
        raise RecipeError(f"{text}. `rayvideo plan` with this recipe says where it goes")
    logger.warning("%s (a plan is within %.0f %%)", text, 100 * ERROR)


def _refuse_weights(recipe: Recipe, nodes: list[float]) -> None:
    """Refuse weights that no node could hold, whatever else is done: activations come on top."""
    if not nodes or recipe.training.zero_stage == 3:
        return
    model = recipe.model
    parts = load_model(
        model.path,
        family=model.family,
        dtype=DTYPES[recipe.training.precision],
        device="meta",
        parts=("denoiser", "vae"),
    )
    needed = sum(tensor.nbytes for tensor in parts.tensors())
    if needed > max(nodes):
        raise RecipeError(
            f"a worker's weights are {needed / GIB:.1f} GiB, and no node offers more than {max(nodes) / GIB:.1f} GiB "
            "of memory to Ray; what fits: larger nodes, or training.zero_stage=3 on more of them"
        )
