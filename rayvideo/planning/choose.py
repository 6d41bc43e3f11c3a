"""The cheapest setting that fits: of those that train the same numbers first, then of those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayvideo.planning.estimate import Estimate, Rates, estimate
from rayvideo.planning.rehearsal import Rehearsal, rehearse
from rayvideo.recipe import Recipe

Changes = dict[str, Any]
"""Key of the recipe -> its new value."""

PROFILES: tuple[Changes, ...] = (
    {"model.checkpointing": "none", "reward.decode": "together"},
    {"model.checkpointing": "none", "reward.decode": "frame_by_frame"},
    {"model.checkpointing": "blocks", "reward.decode": "together"},
    {"model.checkpointing": "blocks", "reward.decode": "frame_by_frame"},
    {"model.checkpointing": "both", "reward.decode": "frame_by_frame"},
    {"model.checkpointing": "clips", "reward.decode": "frame_by_frame"},
)
"""The more memory, the less time. Each of them trains the same."""

OTHER_NUMBERS: tuple[Changes, ...] = (
    {"training.precision": "bf16"},
    {"editing.grad_steps": 1, "editing.grad_on": "last"},
    {"model.vae_context": 0},
)
"""What takes less memory, and trains something else; one after the other until it fits."""


@dataclass(frozen=True)
class Choice:
    """A setting and what it takes."""

    changes: Changes
    """Of the recipe."""
    same_numbers: bool
    """Whether it trains as the recipe does, up to rounding."""
    recipe: Recipe
    estimate: Estimate


def choose(recipe: Recipe, own: Rehearsal, memory: int, rates: Rates) -> Choice | None:
    """The setting of the shortest step that fits into GPUs of `memory` bytes, by `own`, the recipe's rehearsal.

    A recipe that fits is compared with settings of less recomputation. One that does not gets the nearest of more that
    fits. None: nothing fits.
    """
    start = next((n for n, profile in enumerate(PROFILES) if _holds(recipe, profile)), 0)
    best = _best(recipe, {}, own, memory, rates)
    if best is not None:
        for profile in reversed(PROFILES[:start]):
            cheaper = _best(recipe, profile, rehearse(changed(recipe, profile)), memory, rates)
            if cheaper is None:
                break
            best = min(best, cheaper, key=_cost)
        return best
    if found := _nearest(recipe, PROFILES[start + 1 :], memory, rates, same_numbers=True):
        return found
    leaner, changes = [], dict(PROFILES[-1])
    for other in OTHER_NUMBERS:
        changes |= other
        if not _holds(recipe, other):
            leaner.append(dict(changes))
    return _nearest(recipe, leaner, memory, rates, same_numbers=False)


def _nearest(
    recipe: Recipe, profiles: Sequence[Changes], memory: int, rates: Rates, *, same_numbers: bool
) -> Choice | None:
    """The first profile that fits. Each takes less than the one before, so that the middle one tells where to look."""
    if not profiles:
        return None
    middle = len(profiles) // 2
    counted = rehearse(changed(recipe, profiles[middle]))
    found = _best(recipe, profiles[middle], counted, memory, rates, same_numbers=same_numbers)
    if found is None:
        return _nearest(recipe, profiles[middle + 1 :], memory, rates, same_numbers=same_numbers)
    return _nearest(recipe, profiles[:middle], memory, rates, same_numbers=same_numbers) or found


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of `section.key`."""
    for path, value in changes.items():
        section, key = path.split(".")
        update = getattr(recipe, section).model_copy(update={key: value})
        recipe = recipe.model_copy(update={section: update})
    return recipe


def on_card(recipe: Recipe, found: Estimate) -> int:
    """Bytes on a GPU that a worker is on: of as many workers as share it, and of the judges that fit beside them."""
    share = recipe.training.gpus_per_worker
    workers = min(int(1 / share + 1e-6) if 0 < share < 1 else 1, recipe.training.workers.max)
    total, left = workers * sum(found.worker.values()), 1 - workers * share
    for judge in recipe.reward.judges:
        if 0 < judge.num_gpus <= left + 1e-6:
            left -= judge.num_gpus
            total += sum((found.judges[judge.name] or {}).values())
    return total


def _holds(recipe: Recipe, changes: Changes) -> bool:
    return changed(recipe, changes) == recipe


def _best(
    recipe: Recipe, profile: Changes, counted: Rehearsal, memory: int, rates: Rates, *, same_numbers: bool = True
) -> Choice | None:
    """Of the settings with the activations that were counted, the one of the shortest step that fits."""
    fitting = []
    for changes in _settings(recipe):
        tried = changed(recipe, profile | changes)
        found = estimate(tried, counted, rates, recipe.training.batch_size)
        if on_card(tried, found) <= memory:
            real = {key: value for key, value in (profile | changes).items() if not _holds(recipe, {key: value})}
            fitting.append(Choice(real, same_numbers, tried, found))
    return min(fitting, key=_cost, default=None)


def _settings(recipe: Recipe) -> Iterator[Changes]:
    """Batches of the recipe's number of clips a step, and where weights lie; its own first, then the larger batches."""
    training = recipe.training
    stores: list[Changes] = [{}]
    if training.workers.min > 1:
        stores.append({"training.zero_stage": 3})
    if training.gpus_per_worker:
        stores.append({"training.zero_stage": 3, "training.offload": "cpu"})
    for store in stores:
        for batch in range(training.batch_size, 0, -1):
            if training.batch_size % batch == 0:
                clips = training.batch_size * training.accumulation
                yield store | {"training.batch_size": batch, "training.accumulation": clips // batch}


def _cost(choice: Choice) -> tuple[float, int]:
    """Seconds of a step; of the same, the fewest changes."""
    return round(choice.estimate.seconds, 3), len(choice.changes)
