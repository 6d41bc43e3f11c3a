"""One look for every progress bar: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_EVERY_S = 5.0
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"


def progress(label: str, total: int, items: Iterable | None = None, unit: str = "clip") -> tqdm:
    """A tqdm bar over `items`, or one to `.update(n)` by hand; `.close()` it, or use it in a `with`."""
    if sys.stderr.isatty():
        return tqdm(items, desc=label, total=total, unit=unit, dynamic_ncols=True)
    return _Lines(items, desc=label, total=total, unit=unit, mininterval=LOG_EVERY_S, bar_format=LINE)


class _Lines(tqdm):
    """A log is read by line and long after: no carriage returns."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{self if msg is None else msg}\n")
