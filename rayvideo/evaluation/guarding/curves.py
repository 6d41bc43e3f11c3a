"""What guards found over training, as lines of SVG charts for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rayvideo.evaluation.curves import CHART, History, Scale
from rayvideo.evaluation.guarding.rows import WORSE, Figure, Row

UNITS = {"training": "σ", "held-out": "σ", "measure": "of the base's"}


class GuardCurve(NamedTuple):
    """A metric's change over training, in a chart of CHART's size."""

    title: str
    note: str
    """What it is, in which unit, and which way it falls."""
    line: str
    """SVG points of the change, the base's 0 at step 0 included."""
    band: str
    """SVG points around the interval; empty without one."""
    zero: float
    """Pixels from above at which nothing has changed."""
    margin: float | None
    """Pixels from above of a measure's margin; None where the margin is one below the best so far, or unknown."""
    scale: Scale


def guard_curves(rows: Sequence[Row]) -> list[GuardCurve]:
    """The curves of all sets together: training judges, held-out ones, then measures; none without rows."""
    metrics = {metric: figure.role for row in rows for metric, figure in row.together.items()}
    order = ("training", "held-out", "measure")
    return [_curve(metric, rows) for metric in sorted(metrics, key=lambda one: order.index(metrics[one]))]


def _curve(metric: str, rows: Sequence[Row]) -> GuardCurve:
    found = [(row.step, row.together[metric]) for row in rows if metric in row.together]
    newest = found[-1][1]
    line: History = [(0, 0.0), *((step, figure.change) for step, figure in found)]
    low, high = _bounds(found)
    limit = None if newest.role != "measure" or newest.margin is None else WORSE[metric] * newest.margin
    edges = [(0, limit)] if limit is not None else []
    scale = Scale.of([line, low, high, edges])
    return GuardCurve(
        metric,
        _note(metric, newest),
        scale.points(line),
        f"{scale.points(low)} {scale.points(high[::-1])}" if len(low) > 1 else "",
        _height(scale, 0.0),
        None if limit is None else _height(scale, limit),
        scale,
    )


def _bounds(found: Sequence[tuple[int, Figure]]) -> tuple[History, History]:
    low: History = [(0, 0.0)]
    high: History = [(0, 0.0)]
    for step, figure in found:
        if figure.low is not None and figure.high is not None:
            low.append((step, figure.low))
            high.append((step, figure.high))
    return low, high


def _note(metric: str, newest: Figure) -> str:
    kind = "measure" if newest.role == "measure" else f"{newest.role} judge"
    unit = "as it is" if metric == "kid" else UNITS[newest.role]
    falls = "" if newest.role == "training" else f"; {'higher' if WORSE.get(metric, -1) > 0 else 'lower'} is worse"
    margin = "" if newest.margin is None else f"; margin {newest.margin:.2g}"
    return f"{kind}, change {unit}{falls}{margin}"


def _height(scale: Scale, value: float) -> float:
    return CHART[1] - (value - scale.lowest) * CHART[1] / ((scale.highest - scale.lowest) or 1)
