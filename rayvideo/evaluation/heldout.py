"""Judges that only report must not be those that training listens to."""

from __future__ import annotations

import json
from pathlib import Path

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe
from rayvideo.sections import Judge


def check_held_out(recipe: Recipe) -> None:
    """Refuse weights that both train and report, unless `evaluation.allow_training_judges` says that it is meant.

    Raises:
        RecipeError: naming both judges and the option.
    """
    if recipe.evaluation.allow_training_judges:
        return
    for number, judge in enumerate(recipe.evaluation.judges):
        if twin := _twin(recipe, judge):
            raise RecipeError(
                f"evaluation.judges.{number}: {judge.name!r} has the weights of {twin.name!r}, which reward.judges "
                f"trains on ({judge.checkpoint or judge.type}): it can't tell whether the model only learned to please "
                "it. Name another checkpoint; or, to report it all the same, set evaluation.allow_training_judges=true"
            )


def trained_on(recipe: Recipe) -> set[str]:
    """Names of the judges whose weights training listens to, also of those under `evaluation`."""
    reporting = {judge.name for judge in recipe.evaluation.judges if _twin(recipe, judge)}
    return reporting | {judge.name for judge in recipe.reward.judges}


def _twin(recipe: Recipe, judge: Judge) -> Judge | None:
    """The judge of `reward` with the same weights, whatever its resize or dtype."""
    return next((one for one in recipe.reward.judges if _weights(one) == _weights(judge)), None)


def _weights(judge: Judge) -> tuple[str | None, ...]:
    if judge.checkpoint is None:  # a judge without weights is its class and what that is told
        return judge.type, judge.architecture, json.dumps(judge.options, sort_keys=True)
    if Path(judge.checkpoint).exists():
        return (str(Path(judge.checkpoint).resolve()),)
    return judge.checkpoint, judge.options.get("version")  # a hub id, under which HPSv2 has several files
