"""What a sweep varies and how it chooses: a YAML file, or the command line."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from pydantic import Field, ValidationError, model_validator

from rayvideo.errors import RecipeError
from rayvideo.recipe import UNREADABLE, Recipe
from rayvideo.sections import Section
from rayvideo.sections.base import Positive
from rayvideo.tracking.charts import clip_chart

DIGITS = 4
"""Significant ones of a number that is drawn: nobody wants to type 0.00031622776601683794 again."""


class Range(Section):
    """Where values of an option are drawn from at random."""

    min: int | float
    max: int | float = Field(description="Values are whole numbers if both bounds are written as such: 1, not 1.0.")
    log: bool = Field(False, description="Whether orders of magnitude are equally likely, not values.")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.min >= self.max or (self.log and self.min <= 0):
            raise ValueError(f"{self.min:g} to {self.max:g} is no range{' of logarithms' if self.log else ''}")
        return self

    def draw(self, dice: random.Random) -> int | float:
        """A value between the bounds, which it may be."""
        low, high = (math.log(self.min), math.log(self.max)) if self.log else (self.min, self.max)
        drawn = dice.uniform(low, high)
        value = math.exp(drawn) if self.log else drawn
        if isinstance(self.min, int) and isinstance(self.max, int):
            return round(value) if self.log else dice.randint(self.min, self.max)
        return float(f"{value:.{DIGITS}g}")


Values = Annotated[list[Any], Field(min_length=1)] | Range


class Sweep(Section):
    """What a sweep varies, and how it chooses."""

    vary: dict[str, Values] = Field(
        {},
        description="An option's dotted key -> its values: a list, or a range {min, max, log} that values are drawn "
        "from. Lists are combined with each other.",
    )
    samples: Positive = Field(1, description="Trials of each combination of the lists, each with its own draws.")
    judge: str | None = Field(
        None, description="The held-out judge that chooses, one of evaluation.judges; null: the first of them."
    )
    grace: Positive | None = Field(
        None, description="Training steps before which no trial is ended; null: those of the first comparison."
    )
    keep: Annotated[float, Field(gt=1)] = Field(
        3.0, description="Of so many trials one goes on at each rung; rungs are grace, grace x keep, grace x keep², …"
    )
    concurrent: Positive = Field(
        1, description="Trials that run at once, as far as the cluster has, or an autoscaler adds, room for them."
    )
    seed: int = Field(0, description="Root of what is drawn.")

    def metrics(self, recipe: Recipe) -> list[str]:
        """The names in MLflow of the figures whose mean chooses: the judge's score of each caption set's previews.

        Raises:
            RecipeError: there is no such judge.
        """
        names = [judge.name for judge in recipe.evaluation.judges]
        if not names or (self.judge or names[0]) not in names:
            raise RecipeError(
                f"sweep's judge {self.judge!r} is not under evaluation.judges; there are: {', '.join(names) or 'none'}"
            )
        judge = self.judge or names[0]
        return [clip_chart("preview", captions, judge, held_out=[judge]) for captions in recipe.evaluation.sets]

    def first_rung(self, recipe: Recipe) -> int:
        """Training steps before which no trial is ended."""
        return min(self.grace or recipe.evaluation.every, recipe.training.steps)

    def trials(self) -> list[list[str]]:
        """The overrides, `key=value`, that tell each trial from the others: the same ones at every call.

        Raises:
            RecipeError: nothing is varied.
        """
        if not self.vary:
            raise RecipeError("a sweep needs something to vary, e.g. --vary training.lr=[1e-4,3e-4]")
        dice = random.Random(self.seed)
        return [list(self._overrides(chosen, dice)) for chosen in self._combined() for _ in range(self.samples)]

    def _combined(self) -> Iterator[dict[str, Any]]:
        lists = {key: values for key, values in self.vary.items() if not isinstance(values, Range)}
        return (dict(zip(lists, values, strict=True)) for values in product(*lists.values()))

    def _overrides(self, chosen: Mapping[str, Any], dice: random.Random) -> Iterator[str]:
        for key, values in self.vary.items():
            value = values.draw(dice) if isinstance(values, Range) else chosen[key]
            yield f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def load_sweep(path: str | None, vary: Sequence[str] = (), **given: Any) -> Sweep:
    """A sweep as its file says, with what was typed in place of that.

    Args:
        path: YAML with the keys of `Sweep`; None: only what is typed.
        vary: `key=[a,b]` or `key={min: a, max: b, log: true}`, each in place of the file's line of that key.
        given: Other options; those that are None were not typed.

    Raises:
        RecipeError: naming the file or what was typed.
    """
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path)) if path else {}
        if not isinstance(tree, dict):
            raise ValueError("it is not a mapping")
        typed = dict(map(_typed, vary))
        tree |= {key: value for key, value in given.items() if value is not None}
        if typed:
            tree["vary"] = {**tree.get("vary", {}), **typed}
        return Sweep.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'sweep'}: {one['msg']}" for one in error.errors())
        raise RecipeError(f"sweep {path or 'of the command line'}: {said}") from None
    except UNREADABLE as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"sweep {str(Path(path or ''))!r} can't be read: {error}") from error


def _typed(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"])) if equals and key else {}
    if not isinstance(read.get("v"), list | dict):
        raise RecipeError(f"--vary {text!r} is neither of the form key=[a,b] nor of key={{min: a, max: b}}")
    return key, read["v"]
