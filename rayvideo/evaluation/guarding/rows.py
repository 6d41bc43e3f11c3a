"""What one evaluation during training found: plain figures, written as a line of JSON. Nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Role = Literal["training", "held-out", "measure"]

WORSE = {"motion": -1, "optical_flow": -1, "diversity": -1, "flicker": 1, "kid": 1}
"""Measures that guard, and the sign of a change for the worse."""


class Figure(NamedTuple):
    """One metric of the tuned clips, against the base's clips of the same captions and seeds."""

    role: Role
    base: float
    """Mean of the base's clips, in the metric's own unit, as is `tuned`. Of `kid` both are 0: only its change is
    found."""
    tuned: float
    change: float
    """Mean of tuned - base: of a judge in standard deviations of the base's clips, of a measure as a share of the
    base's mean, of `kid` as it is; as it is, too, where that standard deviation or mean is 0."""
    low: float | None
    """Of the change's 95 % interval; None with fewer than six captions."""
    high: float | None
    margin: float | None
    """Change for the worse that comparing the base with itself under other seeds seldom exceeds; None with fewer than
    six captions."""


@dataclass(frozen=True)
class Row:
    """What was found of the adapter of one optimizer step."""

    step: int
    steps: int
    """Optimizer steps that the run is to make in all."""
    together: dict[str, Figure]
    """Metric -> what the clips of all caption sets say together."""
    sets: dict[str, dict[str, Figure]] = field(default_factory=dict)
    """Caption set -> metric -> what its clips say."""
    seconds: float = 0.0
    """That the actors took for it, beside training."""

    def to_json(self) -> dict[str, Any]:
        """A line of guards.jsonl."""
        return {
            "step": self.step,
            "steps": self.steps,
            "together": _plain(self.together),
            "sets": {name: _plain(figures) for name, figures in self.sets.items()},
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Row:
        """The row that `to_json` wrote."""
        sets = {name: _figures(figures) for name, figures in line["sets"].items()}
        return cls(line["step"], line["steps"], _figures(line["together"]), sets, line["seconds"])


def _plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {metric: figure._asdict() for metric, figure in figures.items()}


def _figures(plain: Mapping[str, Any]) -> dict[str, Figure]:
    return {metric: Figure(**figure) for metric, figure in plain.items()}
