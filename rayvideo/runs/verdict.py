"""A run may end before its last step for a good reason: what was decided, when, and whose adapter is the product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """The decision of a stop rule that a run is over."""

    step: int
    """Optimizer step whose adapter is the product of the run."""
    reason: str
    """Why, in one sentence; it stands in MLflow, in summary.json and on the terminal."""
    given_at: int
    """Optimizer step after which the rule decided, the last one that the run has done."""


class RuleState(NamedTuple):
    """What a checkpoint holds of the run's stop rule."""

    state: dict[str, Any]
    """What the rule itself remembers, as JSON."""
    keep: tuple[int, ...]
    """Steps whose checkpoints the rule may still name as the product, so that they must not be deleted."""
    verdict: Verdict | None


def verdict_of(state: Mapping[str, Any], steps: int) -> Verdict | None:
    """The verdict that ended the run after a checkpoint's step, by what the checkpoint's state.json holds.

    One that was given after the last step only chose the product: it ends no run that has more steps by now.

    Args:
        steps: Optimizer steps that the run is to make in all.
    """
    found = state.get("verdict")
    if not found:
        return None
    verdict = Verdict(**found)
    return None if verdict.given_at == state["recipe"]["training"]["steps"] < steps else verdict
