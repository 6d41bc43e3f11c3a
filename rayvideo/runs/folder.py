"""A run's folder: which run it belongs to, whether a new or a resumed run may use it, and its summary."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe, flatten, parse_recipe, shareable
from rayvideo.storage import StorageError, is_file, is_uri, join, read_bytes, read_summary, write_bytes
from rayvideo.tracking import RunRef

RECIPE = "recipe.yaml"  # what the run was begun with; the folder is taken once it is there
RUN = "run.json"  # the MLflow run
MAY_CHANGE = (
    "training.steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_best",
    "training.max_failures",
    "training.workers",
    "training.cpus_per_worker",
    "training.gpus_per_worker",
    "evaluation.",
    "tracking.uri",
    "tracking.system_metrics",
    "tracking.register_as",
    "storage",
)
"""Options, and beginnings of options, that a resumed run may have another value for."""
logger = logging.getLogger(__name__)

WINDOW = 10  # most steps that the figures "first" and "last" are means of; in short runs fewer: they never overlap


def named(recipe: Recipe) -> Recipe:
    """The recipe with a run name: date and time, unless it has one."""
    name = recipe.tracking.run_name or datetime.now().strftime("%Y%m%d-%H%M%S")
    return recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"run_name": name})})


def folder_of(recipe: Recipe) -> str:
    """The run folder, as an absolute path or URI: workers may have another working directory."""
    storage = recipe.storage if is_uri(recipe.storage) else str(Path(recipe.storage).absolute())
    return join(storage, recipe.tracking.run_name or "")


def refuse_taken(recipe: Recipe) -> None:
    """Raise `RecipeError` if a run of this name exists."""
    if is_file(join(folder_of(recipe), RECIPE)):
        raise RecipeError(
            f"tracking.run_name {recipe.tracking.run_name!r}: this run exists in {recipe.storage!r}; "
            "go on with it (--resume) or choose another name"
        )


def as_begun(recipe: Recipe) -> Recipe:
    """The recipe with what the run was begun with in place of every "auto" of number formats, and of offset noise.

    Offset noise of null is 0.1 for diffusion, which earlier versions wrote down.
    """
    then = begun_with(folder_of(recipe))
    return parse_recipe(_as_begun(recipe.model_dump(mode="json"), then.model_dump(mode="json")))


def _as_begun(now: Any, then: Any, key: str = "") -> Any:
    if isinstance(now, dict) and isinstance(then, dict):
        return {name: _as_begun(value, then.get(name), name) for name, value in now.items()}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [_as_begun(*pair) for pair in zip(now, then, strict=True)]
    left_open = (now == "auto" and key in ("precision", "dtype")) or (now is None and key == "offset_noise")
    return then if left_open else now


def begun(recipe: Recipe) -> str:
    """Id of the MLflow run that was begun under the recipe's name, and can be gone on with.

    Raises:
        RecipeError: there is no such run, it did not get as far as MLflow, or it was begun with another recipe.
    """
    name, folder = recipe.tracking.run_name, folder_of(recipe)
    if not is_file(join(folder, RECIPE)):
        raise RecipeError(
            f"tracking.run_name {name!r}: no such run in {recipe.storage!r} to resume; start it without --resume, or "
            "set tracking.run_name and storage to those of the run that is meant"
        )
    _refuse_changed(str(name), begun_with(folder), as_begun(recipe))
    if not is_file(join(folder, RUN)):
        raise RecipeError(
            f"tracking.run_name {name!r} has nothing to resume from; remove {folder!r} or choose another name"
        )
    try:
        return str(json.loads(read_bytes(join(folder, RUN)))["run_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f'{join(folder, RUN)} can\'t be read: {error!r}; write {{"run_id": "..."}} into it, with the id that '
            f"MLflow shows for run {name!r}"
        ) from error


def begun_with(folder: str) -> Recipe:
    """The recipe that the run in a folder was begun with.

    Raises:
        RecipeError: it is gone or damaged.
    """
    file = join(folder, RECIPE)
    try:
        return parse_recipe(yaml.safe_load(read_bytes(file)))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, RecipeError) as error:
        raise RecipeError(
            f"{file} can't be read: {error}; put the recipe that the run was begun with in its place"
        ) from error


def _refuse_changed(name: str, then: Recipe, now: Recipe) -> None:
    """Refuse another value of an option that the numbers depend on."""
    old, new = flatten(shareable(then)), flatten(shareable(now))
    for key in sorted(old.keys() | new.keys()):
        same = key in old and key in new and json.dumps(old[key]) == json.dumps(new[key])  # True is not 1
        if not same and not key.startswith(MAY_CHANGE):
            was, would_be = (f"with {tree[key]!r}" if key in tree else "without it" for tree in (old, new))
            raise RecipeError(f"{key}: run {name!r} was begun {was}, and can't be resumed {would_be}")


def write_run(folder: str, ref: RunRef) -> None:
    """Write down which MLflow run the folder belongs to; checkpoints of other ones in it are refused."""
    write_bytes(join(folder, RUN), json.dumps(ref.shareable(), indent=2).encode())


def write_recipe(recipe: Recipe) -> None:
    """Write the recipe into the run folder, which is taken by that."""
    text = yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True)
    write_bytes(join(folder_of(recipe), RECIPE), text.encode())


def known(folder: str) -> dict[str, Any]:
    """What summary.json holds so far; if it can't be read, nothing, with a warning."""
    try:
        return read_summary(folder)
    except StorageError as error:
        logger.warning("%s can't be read, and is written anew: %s", join(folder, "summary.json"), error)
        return {}


def write_summary(folder: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Put `facts` into summary.json beside what it holds already, and return all of it."""
    summary = {**known(folder), **facts}
    write_bytes(join(folder, "summary.json"), json.dumps(summary, indent=2).encode())
    return summary


def copy_adapter(source: Path, folder: str) -> str:
    """Copy a checkpoint's adapter to where the run's product belongs, `adapter/`, and return that path or URI."""
    target = join(folder, "adapter")
    for file in source.iterdir():
        write_bytes(join(target, file.name), file.read_bytes())
    return target


def figures(steps: Sequence[dict[str, Any]], judges: Sequence[str]) -> dict[str, Any]:
    """The figures of summary.json that are made of the lines of metrics.jsonl: docs/summary.md lists both.

    Args:
        steps: The lines, one or more.
        judges: Names of the judges that the run is trained on.
    """
    window = min(WINDOW, max(1, len(steps) // 2))

    def ends(key: str) -> dict[str, float]:
        values = [step[key] for step in steps]
        return {"first": fmean(values[:window]), "last": fmean(values[-window:])}

    return {
        "window": window,
        "reward": ends("reward"),
        "scores": {judge: ends(f"score/{judge}") for judge in judges},
        "gradient_norm": ends("gradient_norm"),
        "saturation": ends("saturation"),
        "clipped": fmean(step["clipped"] for step in steps),
        "seconds_per_step": {
            key.removeprefix("seconds/"): fmean(step[key] for step in steps)
            for key in steps[0]
            if key.startswith("seconds/")
        },
    }
