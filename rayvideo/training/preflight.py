"""What a fine-tuning needs, looked for before anything starts."""

from __future__ import annotations

import logging
from typing import Any

import torch

from rayvideo.data.manifest import read_captioned
from rayvideo.data.prepared import open_prepared
from rayvideo.errors import RecipeError
from rayvideo.evaluation.captions import prompts, shown
from rayvideo.evaluation.findings import roles
from rayvideo.evaluation.guarding.check import check as check_guards
from rayvideo.evaluation.heldout import check_held_out
from rayvideo.evaluation.metrics import resolve_features
from rayvideo.models import ModelError, VideoModel, load_model, start
from rayvideo.models.experts import Experts, trained_expert
from rayvideo.models.lora import add_lora, pairs, parameter_count
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe
from rayvideo.rewards import check_judge
from rayvideo.runs import folder as runs
from rayvideo.runs.checkpoints import steps_in
from rayvideo.schedules import Chain
from rayvideo.tracking import RunRef, find_run, open_experiment
from rayvideo.training import objectives
from rayvideo.training.objective import Objective
from rayvideo.training.stop_rule import WatchfulRule, load_rule

logger = logging.getLogger(__name__)


def check(recipe: Recipe, *, resume: bool = False) -> None:
    """Refuse a recipe that can't work: missing files, judges without gradient or used twice, clips that can't be made.

    Args:
        resume: Whether a run of this name goes on. From a checkpoint it does without `model.lora.start`.

    Raises:
        UserError: one that names the key or the file, and what is allowed.
    """
    objective = objectives.check(recipe)
    for number, judge in enumerate(recipe.reward.judges):
        key = f"reward.judges.{number}"
        kind = check_judge(key, judge, recipe.data)
        if objective.needs_gradient and not kind.differentiable:
            raise RecipeError(
                f"{key}.type {judge.type!r}: {judge.name!r} gives no gradient to train on; list it under "
                "evaluation.judges, and train on a judge whose class says differentiable = True; or set "
                f"training.objective {recipe.training.objective!r} to {_without_gradient()}, which need none"
            )
    for number, judge in enumerate(recipe.evaluation.judges):
        check_judge(f"evaluation.judges.{number}", judge, recipe.data)
    if recipe.evaluation.features:
        resolve_features(recipe.evaluation.features)
    check_held_out(recipe)
    prompts(recipe)
    if recipe.data.manifest is not None:
        read_captioned(recipe.data.manifest, recipe.data.root, recipe.data.max_bad_fraction)
    else:
        open_prepared(recipe)
    check_guards(recipe)
    _check_rule(recipe)
    _check_model(recipe, objective, fresh=not (resume and steps_in(runs.folder_of(recipe))))


def _check_rule(recipe: Recipe) -> None:
    """Refuse a stop rule that can't be made, and one that goes by guards where there are none."""
    rule = load_rule(recipe.training)
    if not isinstance(rule, WatchfulRule):
        return
    name = recipe.training.stop_rule
    if not recipe.evaluation.guards:
        raise RecipeError(
            f"training.stop_rule {name!r} goes by what guards find: set evaluation.guards, the captions of each set "
            "that they look at, and evaluation.every, the steps between two looks"
        )
    if "held-out" not in roles(recipe).values():
        raise RecipeError(
            f"training.stop_rule {name!r} goes by judges that training does not listen to: list one under "
            "evaluation.judges"
        )


def _without_gradient() -> str:
    """The objectives that learn from scores alone, as a message names them."""
    free = [name for name in objectives.names() if not objectives.resolve(name).needs_gradient]
    return " or ".join(map(repr, free))


def check_place(recipe: Recipe, *, resume: bool, overrule: bool = False) -> RunRef | None:
    """Refuse a name that is taken, a run that can't be resumed, and an MLflow that can't be logged to.

    Returns:
        The MLflow run of the one that is resumed, None for a new run.

    Raises:
        UserError: naming the run or the address, and what is allowed.
    """
    if overrule and not resume:
        raise RecipeError("--overrule goes on with a run that its stop rule ended: give --resume with it")
    if overrule and recipe.training.stop_rule is None:
        raise RecipeError("--overrule: training.stop_rule is not set, so that there is nothing to overrule")
    if resume:
        return find_run(recipe, runs.begun(recipe))
    runs.refuse_taken(recipe)
    open_experiment(recipe)
    return None


def _check_model(recipe: Recipe, objective: type[Objective[Any]], *, fresh: bool) -> None:
    """Refuse a model that can't make the recipe's clips or take its adapter; no weights of it are read."""
    data = recipe.data
    dtype = DTYPES.get(recipe.training.precision, torch.float32)  # auto is none that a model refuses
    model = load_model(
        recipe.model.path,
        family=recipe.model.family,
        shift=recipe.model.shift,
        dtype=dtype,
        device="meta",
        parts=("denoiser", "vae"),
    )
    model.latent_shape(data.frames, data.height, data.width)
    chain = objective.chain(recipe, model.schedule)
    expert = trained_expert(model.denoiser, recipe.model.train)
    if expert is not None:
        _check_visited(recipe, model, expert, chain)
    if recipe.model.compile == "blocks":
        model.compile_blocks()
    if recipe.editing.rollout_cache is not None:
        with model.cached(recipe.editing.rollout_cache):
            pass
    adapted = add_lora(model.denoiser, recipe.model.lora, recipe.seed, within=expert)
    logger.info("adapter: %d layers, %s parameters", len(pairs(adapted)), f"{parameter_count(adapted):,}")
    if fresh:
        start.begin(adapted, recipe.model.lora, type(model), expert)
    if data.manifest is not None or shown(recipe):
        text = load_model(recipe.model.path, family=recipe.model.family, device="meta", parts=("text",))
        width = text.prompt_shape[1]
        if width != model.prompt_width:
            raise ModelError(
                f"{recipe.model.path}: the text tower's embeddings are {width} wide, the denoiser takes "
                f"{model.prompt_width}; are they parts of one model?"
            )


def _check_visited(recipe: Recipe, model: VideoModel, expert: str, chain: Chain) -> None:
    """Refuse to train an expert of two that the chain never asks."""
    experts = model.denoiser
    if isinstance(experts, Experts) and expert not in experts.visited(chain.timesteps):
        raise RecipeError(
            f"model.train {expert!r}: the chain starts at timestep {chain.timesteps[0].item():.0f}, below this model's "
            f"boundary {experts.boundary:.0f}, and never asks that expert; allowed here: 'low', or more noise by a "
            "higher editing.strength"
        )
