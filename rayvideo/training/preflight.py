"""What a fine-tuning needs, looked for before anything starts."""

from __future__ import annotations

from pathlib import Path

from rayvideo.data.manifest import read_manifest
from rayvideo.data.prepared import open_prepared
from rayvideo.evaluation.captions import prompts
from rayvideo.models import ModelError, load_model
from rayvideo.recipe import Judge, Recipe, RecipeError
from rayvideo.rewards import Reward, RewardError, options_of, resolve

GRADIENT_OBJECTIVES = ("reward", "draft")


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose files are missing, whose judges have no gradient, or whose clips the model can't make.

    Raises:
        UserError: one that names the key or the file, and what is allowed.
    """
    for number, judge in enumerate(recipe.reward.judges):
        key = f"reward.judges.{number}"
        kind, objective = _check_judge(key, judge), recipe.training.objective
        if objective in GRADIENT_OBJECTIVES and not kind.differentiable:
            raise RecipeError(
                f"{key}.type {judge.type!r}: {judge.name!r} gives no gradient to train on; list it under "
                "evaluation.judges, and train on a judge whose class says differentiable = True; or set "
                f"training.objective {objective!r} to 'rwr' or 'ddpo', which need none"
            )
    for number, judge in enumerate(recipe.evaluation.judges):
        _check_judge(f"evaluation.judges.{number}", judge)
    prompts(recipe)
    if recipe.data.manifest is not None:
        read_manifest(recipe.data.manifest, recipe.data.root)
    else:
        open_prepared(recipe)
    _check_model(recipe)


def _check_judge(key: str, judge: Judge) -> type[Reward]:
    if judge.architecture and judge.architecture.endswith(".json") and not Path(judge.architecture).is_file():
        raise RecipeError(f"{key}.architecture {judge.architecture!r} is not a file")
    if judge.runtime_env is not None:  # of packages that this process may lack: its replica looks
        return Reward
    try:
        kind = resolve(judge.type)
    except RewardError as error:
        raise RecipeError(f"{key}.type: {error}") from error
    try:
        kind.check(judge.checkpoint, **options_of(judge))
    except RewardError as error:
        raise RecipeError(f"{key}.{error}") from error
    return kind


def _check_model(recipe: Recipe) -> None:
    data = recipe.data
    model = load_model(recipe.model.path, parts=("vae",))
    try:
        model.latent_shape(data.frames, data.height, data.width)
    except ModelError as error:
        raise RecipeError(f"data.height, data.width: {error}") from error
