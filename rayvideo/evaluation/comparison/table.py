"""The paired differences on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayvideo.evaluation.comparison.differences import Difference, Group, Line
from rayvideo.evaluation.comparison.runs import Run


def print_differences(runs: Sequence[Run], groups: Sequence[Group], console: Console) -> None:
    """A table for each caption set, of every run less the first."""
    for group in groups:
        table = Table(
            title=escape(f"{group.set}, {group.steps} steps: {group.pairs} clips of {group.captions} captions")
        )
        table.add_column("metric")
        table.add_column(escape(runs[0].label), justify="right")
        for run in runs[1:]:
            table.add_column(escape(f"{run.label} less it"), justify="right")
        for line in group.lines:
            cells = [_cell(line, difference) for difference in line.differences]
            table.add_row(escape(line.metric), f"{line.first:.4f}", *cells)
        console.print(table)


def _cell(line: Line, difference: Difference) -> str:
    change = difference.change
    between = "" if change.low is None else escape(f" [{change.low:+.4f}, {change.high:+.4f}]")
    return f"{change.value:+.4f}{between} {line.verdict(difference)}".rstrip()
