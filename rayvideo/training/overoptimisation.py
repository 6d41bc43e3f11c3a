"""Whether a run pleases its judge at the cost of everything else: decided by the rows of guards, and by nothing else.

Without Ray: rows of a guards.jsonl serve as well as those of a run that goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from rayvideo.evaluation.guarding.rows import WORSE, Figure, Row
from rayvideo.runs.verdict import Verdict

Action = Literal["stop", "warn"]


class Fall(NamedTuple):
    """A guard that is worse by more than its margin."""

    metric: str
    figure: Figure
    against: float
    """What its change is compared with: of a judge the best so far, of a measure 0, which is the base."""

    def text(self) -> str:
        """Such as "held_out fell from +0.98 σ to +0.35 σ (margin 0.21)"."""
        change, margin = self.figure.change, self.figure.margin or 0.0
        if self.figure.role == "held-out":
            return f"{self.metric} fell from {self.against:+.2f} σ to {change:+.2f} σ (margin {margin:.2f})"
        if self.metric == "kid":
            return f"kid rose by {change:.3g} (margin {margin:.2g})"
        return f"{self.metric} changed by {change:+.0%} (margin {margin:.0%})"


class Finding(NamedTuple):
    """What the rows of a run say."""

    best: int
    """Step of the largest held-out gain among those whose guards hold; among all, if none's do."""
    holds: bool
    """Whether the guards of that step hold."""
    reason: str | None
    """Why the run is over-optimised, in one sentence; None if it is not."""


def falls(row: Row, earlier: Sequence[Row]) -> list[Fall]:
    """The guards of a row that are beyond their margins.

    A held-out judge has fallen if its gain is below its best so far, the base's 0 included; a measure if it is worse
    than the base's. Those without a margin, for want of captions, can't fall.
    """
    found = []
    for metric, figure in row.together.items():
        if figure.margin is None or figure.role == "training":
            continue
        if figure.role == "held-out":
            best = max(0.0, *(before.together[metric].change for before in earlier if metric in before.together), 0.0)
            if best - figure.change > figure.margin:
                found.append(Fall(metric, figure, best))
        elif WORSE[metric] * figure.change > figure.margin:
            found.append(Fall(metric, figure, 0.0))
    return found


def gain(row: Row, role: str) -> float:
    """Mean gain over the base of the judges of a role, in σ.

    Raises:
        ValueError: the row has none.
    """
    found = [figure.change for figure in row.together.values() if figure.role == role]
    if not found:
        raise ValueError(f"the row of step {row.step} has no {role} judge")
    return fmean(found)


def examine(rows: Sequence[Row], patience: int) -> Finding:
    """What the rows of a run so far say, one or more, by step.

    The run is over-optimised if in each of the last `patience` rows some guard has fallen, while the training judges
    still score above the base by more than their margin, and have not lost what they gained until the fall began.

    Args:
        patience: Rows in a row, M.
    """
    fallen = [falls(row, rows[:number]) for number, row in enumerate(rows)]
    holding = [row for row, found in zip(rows, fallen, strict=True) if not found]
    best = max(holding or rows, key=lambda row: gain(row, "held-out"))
    reason = None
    if len(rows) >= patience and all(fallen[-patience:]):
        since = next((number for number in range(len(rows), 0, -1) if not fallen[number - 1]), 0)
        before = gain(rows[since - 1], "training") if since else 0.0
        now = gain(rows[-1], "training")
        margin = fmean(figure.margin or 0.0 for figure in rows[-1].together.values() if figure.role == "training")
        if now > margin and now >= before - margin:
            start = f"step {rows[since - 1].step}" if since else "the base"
            costs = " and ".join(fall.text() for fall in fallen[-1])
            reason = (
                f"over-optimised: from {start} to step {rows[-1].step} the training judge went from {before:+.2f} σ to "
                f"{now:+.2f} σ, while {costs}; guards were beyond their margins in {_times(len(rows) - since)}; "
                f"{_choice(best, bool(holding))}"
            )
    return Finding(best.step, bool(holding), reason)


def _times(count: int) -> str:
    return f"{count} evaluations in a row" if count > 1 else "one evaluation"


def _choice(best: Row, holds: bool) -> str:
    gained = gain(best, "held-out")
    chosen = f"step {best.step} has the largest held-out gain ({gained:+.2f} σ)"
    if not holds:
        return f"{chosen}, but no step's guards hold: the base is better"
    return f"{chosen} of those whose guards hold{'' if gained > 0 else ': the base is no worse'}"


class OverOptimised:
    """The stop rule of this package (`training.stop_rule`), by what `evaluation.guards` find.

    Args:
        patience: Evaluations in a row in which guards must have fallen, M.
        action: `stop` ends the run and makes the best step's adapter its product, also after the last step; `warn` says
            so once, keeps that step's checkpoint, and lets the run go on: its product is the last step's adapter.

    Raises:
        ValueError: for options that are none of these.
    """

    def __init__(self, patience: int = 2, action: Action = "stop") -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience {patience!r} is not allowed: a whole number above 0")
        if action not in get_args(Action):
            raise ValueError(f"action {action!r} is not allowed; allowed: {', '.join(get_args(Action))}")
        self.patience = patience
        self.action = action
        self.keep: int | None = None
        self._rows: list[Row] = []
        self._finding: Finding | None = None
        self._warned = False

    def watch(self, row: Row) -> str | None:
        """Take a row into account; with `warn`, the first sentence that calls the run over-optimised."""
        if self._rows and row.step <= self._rows[-1].step:
            return None  # known before the resumption
        self._rows.append(replace(row, sets={}))
        self._finding = examine(self._rows, self.patience)
        if self.action == "stop" or self._warned or self._finding.reason is None:
            return None
        self._warned = True
        return self._finding.reason

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        """The verdict, in the step that a row came in; the values of training steps decide nothing."""
        finding, self._finding = self._finding, None
        if finding is None:
            return None
        self.keep = finding.best
        if self.action == "warn":
            return None
        if finding.reason:
            return Verdict(finding.best, finding.reason, given_at=step)
        last = self._rows[-1]
        if last.step == last.steps == step and finding.best != step:
            best = next(row for row in self._rows if row.step == finding.best)
            lost = "".join(f"; {fall.text()}" for fall in falls(last, self._rows[:-1]))
            reason = (
                f"all {step} steps are done: {_choice(best, finding.holds)}, the last step's is "
                f"{gain(last, 'held-out'):+.2f} σ{lost}"
            )
            return Verdict(finding.best, reason, given_at=step)
        return None

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"keep": self.keep, "rows": [row.to_json() for row in self._rows], "warned": self._warned}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` returned."""
        self.keep, self._warned = state["keep"], state["warned"]
        self._rows = [Row.of(line) for line in state["rows"]]
