"""Which clips of the runs belong together, and what differs between the runs besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.runs import Key, Run

OWN = ("tracking.run_name",)  # differs by what a run is
NOISE = ("model.path", "data.frames", "data.height", "data.width", "evaluation.guidance")
"""Options with which a seed means another clip, whatever was trained."""
JUDGING = {"name", "type", "checkpoint", "architecture", "resize", "options"}
"""What a judge's scores depend on."""


def shared(runs: Sequence[Run]) -> list[Key]:
    """The captions, seeds and numbers of steps of which every run has a clip, in the first run's order.

    Raises:
        EvaluationError: there are none; it says which of the three is to blame.
    """
    first = runs[0]
    if keys := [key for key in first.rows if all(key in run.rows for run in runs)]:
        return keys
    fields = {"caption": "caption", "seed": "seed", "steps": "number of steps"}
    for field, what in fields.items():  # noqa: B007 - what the search ended at
        values = [{getattr(key, field) for key in run.rows} for run in runs]
        if not set.intersection(*values):
            has = "; ".join(f"{run.label} has {_some(found)}" for run, found in zip(runs, values, strict=True))
            break
    else:
        what, has = "caption with the same seed and steps", "each alone is shared by some of their clips"
    raise EvaluationError(
        f"{' and '.join(run.label for run in runs)} have no clip in common that could be compared, no {what} is shared "
        f"({has}); evaluate them with the same evaluation.sets, evaluation.seeds and evaluation.steps"
    )


def _some(values: set[Any]) -> str:
    listed = sorted(values)
    return ", ".join(repr(value) for value in listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def differing_options(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted key -> each run's value, of options that are not the same in all; None also where a run lacks it."""
    keys = dict.fromkeys(key for run in runs for key in run.options if key not in OWN)
    values = {key: [run.options.get(key) for run in runs] for key in keys}
    return {key: each for key, each in values.items() if any(repr(value) != repr(each[0]) for value in each)}


def differing_judges(runs: Sequence[Run]) -> list[str]:
    """Judges that are called the same and are not: their scores can't be compared."""
    found = [
        {judge.name: judge.model_dump(include=JUDGING) for judge in (*recipe.reward.judges, *recipe.evaluation.judges)}
        for recipe in (run.evaluated for run in runs)
    ]
    return [name for name in found[0] if any(name in each and each[name] != found[0][name] for each in found)]


def notes(runs: Sequence[Run], keys: Sequence[Key]) -> list[str]:
    """What a reader must know ahead of the figures, a sentence each."""
    said = []
    if left_out := sum(len(run.rows.keys() - set(keys)) for run in runs):
        said.append(f"{left_out} clips have no partner of the same caption, seed and steps in every run: left out.")
    if other := [key for key in NOISE if key in differing_options(runs)]:
        said.append(f"{', '.join(other)} differ: a seed does not stand for the same noise, or not for the same chain.")
    if judges := differing_judges(runs):
        said.append(f"Judges of one name that are not the same in all runs, left out: {', '.join(judges)}.")
    return said
