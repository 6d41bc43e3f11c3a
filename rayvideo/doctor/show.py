"""Findings as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayvideo.doctor.finding import Finding

SIGNS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "–"}


def print_table(findings: Sequence[Finding], console: Console) -> None:
    """A line a finding; below each ✗, what to do."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "", "check", "measured"):
        table.add_column(title, overflow="fold")
    before = ""
    for finding in findings:
        about = "" if finding.about == before else finding.about
        if about and before:
            table.add_row()
        table.add_row(SIGNS[finding.ok], f"[bold]{escape(about)}[/]", finding.name, escape(finding.measured))
        if finding.ok is False:
            table.add_row("", "", "", f"[yellow]→ {escape(finding.mend)}[/]")
        before = finding.about
    console.print(table)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """One sentence."""
    wrong = sum(finding.ok is False for finding in findings)
    checks = sum(finding.ok is not None for finding in findings)
    verdict = f"{wrong} of {checks} checks failed" if wrong else f"all {checks} checks passed"
    return f"{verdict}, {len(findings) - checks} not applicable; {seconds:.0f} s"


def write_json(findings: Sequence[Finding], seconds: float, file: str) -> None:
    """`{"ok", "seconds", "findings": [{"about", "name", "ok", "measured", "mend"}]}`; `ok` of a finding may be null."""
    content = {
        "ok": all(finding.ok is not False for finding in findings),
        "seconds": round(seconds, 1),
        "findings": [asdict(finding) for finding in findings],
    }
    Path(file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
