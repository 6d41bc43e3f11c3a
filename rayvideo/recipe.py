"""One typed, frozen tree that describes a whole run.

A recipe is a YAML file plus `key=value` overrides. Its sections are in sections/; an unknown key, a
wrong type or an impossible combination raises `RecipeError` before anything starts. Nothing is filled in from outside:
a recipe goes whole into MLflow and summary.json, where environment variables have no business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, create_model, model_validator
from yaml import YAMLError

from rayvideo.errors import RecipeError
from rayvideo.overrides import apply, suggest
from rayvideo.paths import without_login
from rayvideo.sections import Data, Editing, Evaluation, FilePath, Model, Rewards, Section, Tracking
from rayvideo.sections import Training as AnyTraining
from rayvideo.training import objectives

LARGEST = 2**20
"""Bytes of a recipe."""
DEEPEST = 20
"""Sections and lists within each other."""
LONGEST_SHOWN = 200
"""Characters of a value in a message."""
LONGEST_FAULT = 1000
"""Characters of what a section says of its values."""
UNREADABLE = (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, RecursionError)
"""What the libraries raise for text that is no UTF-8, a number of 5000 digits, 1000 brackets."""


if TYPE_CHECKING:
    Training = AnyTraining
else:
    # Each objective brings its options along, as a section of its name.
    brought = {name: objectives.resolve(name).Options for name in objectives.names()}
    Training = create_model(
        "Training",
        __base__=AnyTraining,
        __module__=__name__,
        __doc__=AnyTraining.__doc__,
        **{name: (options, options()) for name, options in brought.items() if options.model_fields},
    )


class Recipe(Section):
    """A whole run."""

    model: Model
    data: Data
    editing: Editing = Editing()
    reward: Rewards
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    storage: FilePath = Field("runs", description="Folder or cloud URI that run folders lie under.")
    seed: int = Field(0, ge=0, description="Root of every random number of the run.")

    @model_validator(mode="after")
    def _fits_its_objective(self) -> Recipe:
        if ":" not in self.training.objective:  # one of the user's own is found later: preflight asks it
            try:
                objectives.check(self)
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.reward.segments > self.data.frames:
            raise ValueError(
                f"reward.segments {self.reward.segments} is more than data.frames {self.data.frames}, and each segment "
                f"needs a frame; allowed: 1 to {self.data.frames}"
            )
        names = [j.name for j in (*self.reward.judges, *self.evaluation.judges)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"judges need different names; used twice: {twice}")
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (dotted keys, `reward.judges.0.weight=2` for list items).

    Raises:
        RecipeError: naming the key, or the override, the value and what is allowed.
    """
    if not Path(path).is_file():
        raise RecipeError(f"recipe {str(path)!r} is not a file")
    if (size := Path(path).stat().st_size) > LARGEST:
        raise RecipeError(f"recipe {str(path)!r} is no recipe: it has {size} bytes, the most is {LARGEST}")
    typed: dict[str, str] = {}
    try:
        config = OmegaConf.load(path)
        for override in overrides:
            key = _override(config, override)
            typed = {**typed, key: override}
        tree = OmegaConf.to_container(config)
    except RecipeError:
        raise
    except UNREADABLE as error:
        raise RecipeError(f"recipe {str(path)!r} can't be read: {_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {str(path)!r} is not a mapping of sections")
    return _parse({str(key): value for key, value in tree.items()}, typed)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Validate a plain tree, such as `recipe.model_dump(mode="json")` gives, into a `Recipe`."""
    return _parse(tree, {})


def flatten(tree: Any) -> dict[str, Any]:
    """What a recipe's tree holds, by dotted keys as overrides write them: `reward.judges.0.name`.

    Lists of plain values, and empty sections, are held whole. A key that has a dot in it, as a judge's options may,
    stands in quotes: no two values share a key.
    """
    return dict(_leaves(tree, ()))


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, Mapping):
        children = tree.items()
    elif isinstance(tree, list | tuple) and any(isinstance(value, Mapping) for value in tree):
        children = enumerate(tree)
    if not children:
        yield ".".join(path), tree
    for key, value in children:
        name = str(key)
        yield from _leaves(value, (*path, json.dumps(name, ensure_ascii=False) if {".", '"'} & {*name} else name))


def shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a plain tree for files that others may read: without the login that tracking.uri may hold."""
    tree = recipe.model_dump(mode="json")
    if recipe.tracking.uri:
        tree["tracking"]["uri"] = without_login(recipe.tracking.uri)
    return tree


def _override(config: Any, override: str) -> str:
    """Apply an override, and return its key."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {_shown(override)} is not of the form key=value")
    try:
        _check_text(key, value)
        _plain(apply(config, Recipe, key, value), tuple(key.split(".")))
    except (RecipeError, *UNREADABLE) as error:
        raise RecipeError(f"override {_shown(override)}: {_one_line(error)}") from error
    return key


def _parse(tree: Mapping[str, Any], typed: Mapping[str, str]) -> Recipe:
    """Validate; what is wrong with a key that was `typed` as an override is said of the override."""
    plain = _plain(tree, ())
    try:
        # JSON mode with strict types: "3" is not a number and true is not 1, yet lists may become tuples.
        return Recipe.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        faults = [{**fault, "loc": _path(fault, plain)} for fault in error.errors()]
        raise RecipeError("\n".join(_explain(fault, typed) for fault in _innermost(faults))) from None


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    """`value` with keys that are text, if everything in it can be written down and read again as the same thing."""
    key = ".".join(path)
    if len(path) > DEEPEST:
        raise RecipeError(f"{key}: sections within sections, more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        plain = {str(name): _plain(inner, (*path, str(name))) for name, inner in value.items()}
        if len(plain) < len(value):
            raise RecipeError(f"{key}: a key stands there twice, as a number and as text, among {list(value)}")
        return plain
    if isinstance(value, list | tuple):
        return [_plain(inner, (*path, str(number))) for number, inner in enumerate(value)]
    if isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise RecipeError(f"{key}: a number of more than 64 bits is not allowed")
    elif isinstance(value, float) and not isfinite(value):
        raise RecipeError(f"{key}: {value} is not allowed: Input should be a finite number")
    elif not (value is None or isinstance(value, int | float)):
        raise RecipeError(f"{key}: {_shown(value)} is not allowed: Input should be text, a number, true, false or null")
    return value


def _check_text(key: str, text: str) -> None:
    if "${" in text:
        raise RecipeError(
            f"{key}: {_shown(text)} is not allowed: a recipe fills nothing in; write it out, repeat a value with "
            "YAML's anchors, or let the shell fill in an override"
        )
    if text == "???":
        raise RecipeError(f"{key}: required, but not set")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise RecipeError(f"{key}: {_shown(text)} is not allowed: Input should be text without zero bytes, in UTF-8")


def _shown(value: Any) -> str:
    """The value as a message shows it; it may be as long as a file."""
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _path(error: Any, tree: Any) -> tuple[int | str, ...]:
    """The keys that lead to an error, without the types among them by which pydantic tells a union's members apart.

    A key is what the tree has there, such as a caption set called like a type, or what is missing there.
    """
    place, value = [], tree
    for part in error["loc"]:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part in keys:
            place.append(part)
            value = value[part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else tuple(place)


def _innermost(errors: Sequence[Any]) -> list[Any]:
    """Without those of a list or section that only follow from what is wrong inside it."""
    places = [error["loc"] for error in errors]
    return [e for e in errors if not any(len(p) > len(e["loc"]) and p[: len(e["loc"])] == e["loc"] for p in places)]


def _explain(error: Any, typed: Mapping[str, str]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    guilty = [override for name, override in typed.items() if _meets(f"{key}.", f"{name}.")]
    return (f"override {_shown(guilty[-1])}: " if path and guilty else "") + _fault(error, path, key)


def _meets(key: str, other: str) -> bool:
    """Whether one of two dotted keys lies in what the other names."""
    return key.startswith(other) or other.startswith(key)


def _fault(error: Any, path: list[str], key: str) -> str:
    if error["type"] == "extra_forbidden":
        return f"{key}: no such option{suggest(Recipe, path)}"
    if error["type"] == "missing":
        return f"{key}: required, but not set"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # a section's own words, in which a value may stand whole
        return message if len(message) <= LONGEST_FAULT else f"{message[:LONGEST_FAULT]}…"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):  # a bool is one too
        message += "; put it in quotes"
    return f"{key}: {_shown(error['input'])} is not allowed: {message}"
