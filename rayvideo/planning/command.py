"""`rayvideo plan` from recipe to table."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

import torch
from rich.console import Console

from rayvideo import own_modules
from rayvideo.errors import UserError
from rayvideo.planning.choose import choose
from rayvideo.planning.estimate import estimate
from rayvideo.planning.rates import rates_for
from rayvideo.planning.rehearsal import rehearse
from rayvideo.planning.show import Plan, print_plan, write_json
from rayvideo.precision import CPU
from rayvideo.precision import choose as choose_format
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.sections import AutoPrecision

LOG_WIDTH = 140
UNITS = {"": 2**30, "GIB": 2**30, "GB": 10**9, "MIB": 2**20, "TIB": 2**40}


def run(
    file: str,
    overrides: Sequence[str] = (),
    memory: str | None = None,
    workers: int | None = None,
    rate: float | None = None,
    json: str | None = None,
) -> bool:
    """Plan a recipe, print the plan, and return whether it fits, or whether that was not asked.

    Args:
        memory: Of a GPU, such as "80GiB"; default: of the GPU of this machine, if it has one and the workers take some.
        rate: TFLOP/s of a worker; default: measured here, or assumed.

    Raises:
        UserError: the recipe or the model can't be read, or `memory` is not understood.
    """
    if workers is not None:
        overrides = [*overrides, f"training.workers={workers}"]
    recipe = load_recipe(file, overrides)
    own_modules.make_importable(recipe, file)
    plan = plan_for(settled(recipe), None if memory is None else bytes_of(memory), rate)
    print_plan(plan, Console(width=None if sys.stdout.isatty() else LOG_WIDTH))
    if json:
        write_json(plan, json)
    return plan.fits is not False


def plan_for(recipe: Recipe, memory: int | None = None, rate: float | None = None) -> Plan:
    """The plan of a recipe whose number formats are settled; see `run`."""
    began = time.monotonic()
    training = recipe.training
    if memory is None and training.gpus_per_worker and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    rates = rates_for(training.gpus_per_worker, training.precision, None if rate is None else rate * 1e12)
    counted = rehearse(recipe)
    choice = None if memory is None else choose(recipe, counted, memory, rates)
    return Plan(recipe, estimate(recipe, counted, rates), rates, memory, choice, round(time.monotonic() - began, 1))


def settled(recipe: Recipe) -> Recipe:
    """The recipe with a number format for every "auto": bf16 on GPUs, on CPUs what this one computes."""

    def format_of(option: AutoPrecision, gpus: float) -> AutoPrecision:
        if option != "auto":
            return option
        return "bf16" if gpus else choose_format("auto", CPU).precision

    training, reward = recipe.training, recipe.reward
    judges = tuple(
        judge.model_copy(update={"dtype": format_of(judge.dtype, judge.num_gpus)}) for judge in reward.judges
    )
    precision = format_of(training.precision, training.gpus_per_worker)
    return recipe.model_copy(
        update={
            "training": training.model_copy(update={"precision": precision}),
            "reward": reward.model_copy(update={"judges": judges}),
        }
    )


def bytes_of(text: str) -> int:
    """Bytes that "80GiB", "24 GB" or "80" (GiB) stand for.

    Raises:
        UserError: it is nothing like that.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise UserError(f"--gpu-memory {text!r} is not understood; allowed: a number with GiB, GB, MiB or TiB")
    return int(float(found[1]) * UNITS[found[2].upper()])
