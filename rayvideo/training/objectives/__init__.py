"""Objectives, each in a file of its own whose name is the recipe's `training.objective`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch import Tensor

from rayvideo.errors import RecipeError
from rayvideo.models.base import VideoModel
from rayvideo.own_modules import resolve_class
from rayvideo.sections import Section
from rayvideo.training.meters import Clock
from rayvideo.training.objective import Objective

if TYPE_CHECKING:
    from rayvideo.recipe import Recipe

LONGEST_NAME = 200
"""Characters of a name in a message."""


def names() -> list[str]:
    """The objectives that come with rayvideo: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def resolve(name: str) -> type[Objective[Any]]:
    """The class that `training.objective` names: that of a file of this folder, or "module:Class".

    Raises:
        RecipeError: there is none, or it is no objective, or an unfinished one.
    """
    if name in names():
        module = import_module(f"{__name__}.{name}")
        return next(
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Objective) and kind.__module__ == module.__name__
        )
    if ":" not in name:
        allowed = ", ".join(map(repr, names()))
        raise RecipeError(
            f"training.objective: {name[:LONGEST_NAME]!r} is not allowed: {allowed}, or 'module:Class' of your own"
        )
    try:
        return resolve_class(name, Objective, "rayvideo.training.objective.Objective")  # type: ignore[type-abstract]
    except ImportError as error:
        raise RecipeError(f"training.objective: {name!r} {error}") from error


def options_of(recipe: Recipe) -> Section:
    """The options of the recipe's objective: its section of `training`, or what `objective_options` says to your own.

    Raises:
        RecipeError: naming an option of your own objective that it does not have, or that has another kind of value.
    """
    training, kind = recipe.training, resolve(recipe.training.objective)
    if training.objective in names():
        if training.objective_options:
            raise RecipeError(
                "training.objective_options is for objectives of your own; the options of "
                f"{training.objective!r} stand in training.{training.objective}, if it has any"
            )
        return getattr(training, training.objective, kind.Options())
    try:
        return kind.Options.model_validate(training.objective_options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("training.objective_options", *first["loc"])))
        raise RecipeError(
            f"{key}: {first['input']!r} is not allowed by {training.objective!r}: {first['msg']}"
        ) from None


def build(
    recipe: Recipe,
    model: VideoModel,
    unconditional: Tensor,
    clock: Clock,
    shown: Callable[[Tensor], Tensor] = lambda drawn: drawn,
) -> Objective[Any]:
    """The recipe's objective, ready to make clips; see `Objective`. By default the frames drawn are those shown."""
    return resolve(recipe.training.objective)(recipe, options_of(recipe), model, unconditional, clock, shown)


def check(recipe: Recipe) -> type[Objective[Any]]:
    """The class of the recipe's objective, if its options fit.

    Raises:
        RecipeError: naming the key and what is allowed.
    """
    kind = resolve(recipe.training.objective)
    try:
        kind.check(recipe, options_of(recipe))
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return kind
