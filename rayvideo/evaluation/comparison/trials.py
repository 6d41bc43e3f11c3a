"""What a person is shown in the blind comparison: two clips of one caption, in an order and on sides by lot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

from rayvideo.evaluation.comparison.runs import Key, Run
from rayvideo.sections.base import Section


class Shown(Section):
    """A clip on one side."""

    run: str
    """The run's label."""
    clip: str
    """Digest of the clip's file: votes count for the clips that they were given on, and for no others."""


class Trial(Section):
    """Two clips of which one may be better."""

    caption: str
    seed: int
    steps: int
    left: Shown
    right: Shown


def trials(runs: Sequence[Run], keys: Sequence[Key], seed: int) -> list[Trial]:
    """Every two runs' clips of every key, shuffled by the seed; of two runs each is on the left half of the time."""
    lot = random.Random(seed)
    made = []
    for pair in combinations(runs, 2):
        swapped = [bool(number % 2) for number in range(len(keys))]
        lot.shuffle(swapped)
        for key, swap in zip(keys, swapped, strict=True):
            left, right = reversed(pair) if swap else pair
            made.append(Trial(**key._asdict(), left=_shown(left, key), right=_shown(right, key)))
    lot.shuffle(made)
    return made


def _shown(run: Run, key: Key) -> Shown:
    return Shown(run=run.label, clip=run.clips[key].digest)
