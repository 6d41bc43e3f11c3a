"""Metrics over training, as lines of SVG charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

CHART = (680, 240)  # pixels
SMOOTHING = 0.05  # of a curve's length: the window of the bold line

History = list[tuple[int, float]]
"""(step, value), by step."""


def histories(lines: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, History]:
    """The curves of some metrics, by the lines of metrics.jsonl: a step that was done again counts once.

    Metrics of fewer than two steps are left out.
    """
    found: dict[str, dict[int, float]] = {key: {} for key in keys}
    for line in lines:
        for key in keys:
            if key in line:
                found[key][line["step"]] = line[key]
    return {key: sorted(values.items()) for key, values in found.items() if len(values) > 1}


def smoothed(history: History) -> History:
    """The running mean."""
    steps, values = zip(*history, strict=True)
    half = max(1, round(SMOOTHING * len(values)))
    means = [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return list(zip(steps, means, strict=True))


class Scale(NamedTuple):
    """What the edges of a chart stand for."""

    first_step: int
    last_step: int
    lowest: float
    highest: float

    @classmethod
    def of(cls, curves: Iterable[History]) -> Scale:
        """The scale that all of the curves fit in."""
        steps, values = zip(*(point for history in curves for point in history), strict=True)
        return cls(min(steps), max(steps), min(values), max(values))

    def points(self, history: History) -> str:
        """The `points` of an SVG polyline in a chart of CHART's size."""
        width, height = CHART
        across = width / (self.last_step - self.first_step)
        up = height / ((self.highest - self.lowest) or 1)
        return " ".join(
            f"{(step - self.first_step) * across:.1f},{height - (value - self.lowest) * up:.1f}"
            for step, value in history
        )
