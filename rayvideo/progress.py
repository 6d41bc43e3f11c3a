"""One look for every progress bar: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_EVERY_S = 5.0
LOG_EVERY_SHARE = 0.01  # of the time since the start, once that is more: a week's log has a thousand lines, not 100 000
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"
STEPS_LINE = "{desc}: {n_fmt}/{total_fmt} steps in {elapsed}{pace}{postfix}"


def progress(label: str, total: int, items: Iterable | None = None, unit: str = "clip") -> tqdm:
    """A tqdm bar over `items`, or one to `.update(n)` by hand; `.close()` it, or use it in a `with`."""
    if sys.stderr.isatty():
        return tqdm(items, desc=label, total=total, unit=unit, dynamic_ncols=True)
    return _Lines(items, desc=label, total=total, unit=unit, mininterval=LOG_EVERY_S, bar_format=LINE)


def step_progress(label: str, total: int) -> Steps:
    """Lines that count optimizer steps, whose time left comes from `Steps.pace`."""
    return _StepLines(desc=label, total=total, mininterval=LOG_EVERY_S, bar_format=STEPS_LINE)


class Steps(tqdm):
    """Between steps a run does other things, which say nothing of the time that the rest of its steps takes."""

    pace: float | None = None
    """Seconds that a step usually takes."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the formats are filled with."""
        pace = ""
        if self.pace is not None:
            left = self.format_interval(self.pace * ((self.total or 0) - self.n))
            pace = f", {self.pace:{'.1f' if self.pace >= 1 else '.2g'}} s a step, {left} left"
        return {**super().format_dict, "pace": pace}


class _Lines(tqdm):
    """A log is read by line and long after: no carriage returns, nothing twice, and less often as time goes on."""

    _told: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n == self._told:
            return
        self._told = self.n
        self.fp.write(f"{self if msg is None else msg}\n")
        self.mininterval = self.maxinterval = max(LOG_EVERY_S, LOG_EVERY_SHARE * self.format_dict["elapsed"])

    def clear(self, nolock: bool = False) -> None:
        """What stands in a log stays there."""

    def close(self) -> None:
        """As tqdm's, without the empty line."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]


class _StepLines(_Lines, Steps):
    pass
