"""What a fine-tuning needs, looked for before anything starts."""

from __future__ import annotations

from rayvideo.data.manifest import read_manifest
from rayvideo.data.prepared import open_prepared
from rayvideo.errors import RecipeError
from rayvideo.evaluation.captions import prompts
from rayvideo.evaluation.heldout import check_held_out
from rayvideo.evaluation.metrics import resolve_features
from rayvideo.models import ModelError, load_model
from rayvideo.recipe import Recipe
from rayvideo.rewards import check_judge

GRADIENT_OBJECTIVES = ("reward", "draft")


def check(recipe: Recipe) -> None:
    """Refuse missing files, judges without gradient, judges that both train and report, clips that can't be made.

    Raises:
        UserError: one that names the key or the file, and what is allowed.
    """
    for number, judge in enumerate(recipe.reward.judges):
        key = f"reward.judges.{number}"
        kind, objective = check_judge(key, judge), recipe.training.objective
        if objective in GRADIENT_OBJECTIVES and not kind.differentiable:
            raise RecipeError(
                f"{key}.type {judge.type!r}: {judge.name!r} gives no gradient to train on; list it under "
                "evaluation.judges, and train on a judge whose class says differentiable = True; or set "
                f"training.objective {objective!r} to 'rwr' or 'ddpo', which need none"
            )
    for number, judge in enumerate(recipe.evaluation.judges):
        check_judge(f"evaluation.judges.{number}", judge)
    if recipe.evaluation.features:
        resolve_features(recipe.evaluation.features)
    check_held_out(recipe)
    prompts(recipe)
    if recipe.data.manifest is not None:
        read_manifest(recipe.data.manifest, recipe.data.root)
    else:
        open_prepared(recipe)
    _check_model(recipe)


def _check_model(recipe: Recipe) -> None:
    data = recipe.data
    model = load_model(recipe.model.path, parts=("vae",))
    try:
        model.latent_shape(data.frames, data.height, data.width)
    except ModelError as error:
        raise RecipeError(f"data.height, data.width: {error}") from error
