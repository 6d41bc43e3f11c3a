"""Paired differences: of every score and measure, between each run's clips and the first run's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayvideo.evaluation.comparison.pairing import differing_judges
from rayvideo.evaluation.comparison.runs import Key, Run
from rayvideo.evaluation.findings import roles
from rayvideo.evaluation.paired import Estimate, Floats, Pairs, difference
from rayvideo.evaluation.report import MEASURE, MEASURES


@dataclass(frozen=True)
class Difference:
    """A metric of one run's clips, less that of the first run's clips of the same captions, seeds and steps."""

    label: str
    change: Estimate
    higher: float
    """Share of pairs in which it is higher."""


@dataclass(frozen=True)
class Line:
    """A metric on one caption set."""

    metric: str
    role: str
    """"training judge", "held-out judge" or "measure"."""
    first: float
    """The first run's mean."""
    differences: list[Difference]

    def verdict(self, difference: Difference) -> str:
        """ "better", "worse" or "", which is no difference beyond chance; of measures "higher" and "lower"."""
        low, high = difference.change.low, difference.change.high
        if low is None or high is None or low <= 0 <= high:
            return ""
        up, down = ("higher", "lower") if self.role == MEASURE else ("better", "worse")
        return up if low > 0 else down


@dataclass(frozen=True)
class Group:
    """A caption set, by the first run's name for it, in one number of steps."""

    set: str
    steps: int
    pairs: int
    captions: int
    lines: list[Line]


def differences(runs: Sequence[Run], keys: Sequence[Key]) -> list[Group]:
    """Every metric that all runs have, set by set; training judges first, then held-out ones, then measures."""
    grouped: dict[tuple[str, int], list[Key]] = defaultdict(list)
    for key in keys:
        grouped[runs[0].rows[key]["set"], key.steps].append(key)
    metrics = _metrics(runs, keys)
    return [
        Group(
            name,
            steps,
            len(group),
            len({key.caption for key in group}),
            [_line(metric, role, runs, group) for metric, role in metrics.items()],
        )
        for (name, steps), group in grouped.items()
    ]


def _metrics(runs: Sequence[Run], keys: Sequence[Key]) -> dict[str, str]:
    """Metric -> role, of all that every shared clip has, but judges that differ."""
    common = set.intersection(
        *({name for name, value in run.rows[key].items() if isinstance(value, float)} for run in runs for key in keys)
    )
    judges = {name: f"{role} judge" for name, role in roles(runs[0].evaluated).items()}
    ordered = sorted(judges, key=lambda name: judges[name] != "training judge")
    known = {**{name: judges[name] for name in ordered}, **dict.fromkeys(MEASURES, MEASURE)}
    left_out = differing_judges(runs)
    return {name: role for name, role in known.items() if name in common and name not in left_out}


def _line(metric: str, role: str, runs: Sequence[Run], keys: Sequence[Key]) -> Line:
    captions = tuple(key.caption for key in keys)
    first = _values(runs[0], keys, metric)
    found = []
    for run in runs[1:]:
        other = _values(run, keys, metric)
        change = difference(Pairs(captions, first, other))
        found.append(Difference(run.label, change, float((other > first).mean())))
    return Line(metric, role, float(first.mean()), found)


def _values(run: Run, keys: Sequence[Key], metric: str) -> Floats:
    return np.array([run.rows[key][metric] for key in keys])
