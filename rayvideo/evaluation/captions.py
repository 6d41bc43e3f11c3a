"""The caption sets of an evaluation, and the few captions of each that are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from rayvideo.data.manifest import read_captions
from rayvideo.recipe import Recipe

Item = TypeVar("Item")


class Prompt(NamedTuple):
    """What one clip is made from."""

    set: str
    caption: str
    seed: int


def prompts(recipe: Recipe) -> list[Prompt]:
    """Every distinct caption of every set with every seed, set by set; at most `evaluation.max_captions` of each set.

    Raises:
        ManifestError: naming the caption file that can't be read.
    """
    options = recipe.evaluation
    found = []
    for name, path in options.sets.items():
        captions = list(dict.fromkeys(entry.caption for entry in read_captions(path)))
        chosen = spread(captions, options.max_captions or len(captions))
        found += [Prompt(name, caption, seed) for caption in chosen for seed in options.seeds]
    return found


def shown(recipe: Recipe) -> list[Prompt]:
    """The prompts whose clips are looked at: `evaluation.previews` captions of each set, with the first seed."""
    return _some(recipe, recipe.evaluation.previews)


def guarded(recipe: Recipe) -> list[Prompt]:
    """The prompts whose clips guard: `evaluation.guards` captions of each set, with every seed."""
    some = _some(recipe, recipe.evaluation.guards)
    return [prompt._replace(seed=seed) for prompt in some for seed in dict.fromkeys(recipe.evaluation.seeds)]


def elsewhere(guarded: Sequence[Prompt]) -> list[Prompt]:
    """The same captions under as many other seeds: what chance alone does to clips of one model."""
    beyond = max(prompt.seed for prompt in guarded) - min(prompt.seed for prompt in guarded) + 1
    return [prompt._replace(seed=prompt.seed + beyond) for prompt in guarded]


def _some(recipe: Recipe, count: int) -> list[Prompt]:
    """`count` captions of each set, with the first seed."""
    options = recipe.evaluation
    everything = [prompt for prompt in prompts(recipe) if prompt.seed == options.seeds[0]]
    return [
        prompt for name in options.sets for prompt in spread([each for each in everything if each.set == name], count)
    ]


def file_name(number: int, prompt: Prompt) -> str:
    """A name for a shown prompt's files, unique by its number among them."""
    return f"{number:02d}-{slug(f'{prompt.set}-{prompt.caption}')}"


def slug(text: str) -> str:
    """Letters a-z, digits and dashes of any text, at most 60; may be empty."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at even distances, or all if there are fewer: lists are often sorted by subject."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
