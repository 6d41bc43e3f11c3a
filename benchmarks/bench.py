"""The short benchmarks against the committed figures: `make bench`. Five minutes on two quiet cores.

    python -m benchmarks.bench                 # compare; exit code 1 if a ratio is worse than its tolerance
    python -m benchmarks.bench --only step     # one of them
    python -m benchmarks.bench --write         # keep what is measured now in benchmarks/results, to be committed

Ratios are compared and not seconds: each is of two things that one run measured in turns, on one machine. All are such
that lower is better. What got better by more than the tolerance is told, too: write new figures then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import in_words

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SHORT = {
    "step": ["step", "--quick"],
    "ingest": ["ingest", "--quick"],
    "startup": ["startup", "--quick"],
    "scaling": ["scaling", "workers", "--quick"],
}
"""Name -> module and options; each writes {"machine": …, "ratios": {name: figure}, …} to --json."""

TOLERANCE = 0.15
"""Of a ratio."""
SLACK = 0.02
"""On top: shares near 0 may double and mean nothing."""

WORSE, BETTER, SAME, NEW, GONE = "WORSE", "better", "", "new", "GONE"


class NoFiguresError(Exception):
    """There is nothing to compare with."""


@dataclass(frozen=True)
class Compared:
    """One ratio."""

    name: str
    old: float | None
    """None: it is not committed."""
    new: float | None
    """None: it was not measured."""
    verdict: str

    @property
    def bad(self) -> bool:
        """Whether someone should look."""
        return self.verdict in (WORSE, GONE)


def compare(old: Mapping[str, float], new: Mapping[str, float], tolerance: float = TOLERANCE) -> list[Compared]:
    """Each ratio of the committed ones and those measured now, in the order of the committed ones."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if before is None:
            verdict = NEW
        elif now is None:
            verdict = GONE
        elif now > before * (1 + tolerance) + SLACK:
            verdict = WORSE
        else:
            verdict = BETTER if now < before * (1 - tolerance) - SLACK else SAME
        found.append(Compared(name, before, now, verdict))
    return found


def table(found: Mapping[str, list[Compared]]) -> str:
    """Markdown."""
    rows = ["| benchmark | ratio | committed | now | |", "|---|---|---|---|---|"]
    for benchmark, lines in found.items():
        for line in lines:
            old, new = ("" if each is None else f"{each:.3f}" for each in (line.old, line.new))
            rows.append(f"| {benchmark} | {line.name} | {old} | {new} | {line.verdict} |")
    return "\n".join(rows)


def committed(results: Path, name: str) -> dict[str, Any]:
    """What `keep` wrote.

    Raises:
        NoFiguresError: naming the file, and how it is made.
    """
    file = results / f"{name}.json"
    if not file.exists():
        raise NoFiguresError(
            f"{file}: no such figures; on a quiet machine: python -m benchmarks.bench --write --only {name}"
        )
    return dict(json.loads(file.read_text()))


def keep(results: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Write the ratios, and where and when they were measured."""
    results.mkdir(exist_ok=True)
    kept = {"machine": figures["machine"], "ratios": figures["ratios"]}
    (results / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")


def command(name: str, file: Path) -> list[str]:
    """Of a short benchmark that writes its figures into `file`."""
    module, *options = SHORT[name]
    return [sys.executable, "-m", f"benchmarks.{module}", "--json", str(file), *options]


def measure(name: str) -> dict[str, Any]:
    """Run a short benchmark, whose own table goes to the terminal."""
    print(f"\n{name}\n", flush=True)
    with TemporaryDirectory() as folder:
        file = Path(folder, "figures.json")
        subprocess.run(command(name, file), cwd=ROOT, check=True)
        return dict(json.loads(file.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SHORT], default=[*SHORT])
    parser.add_argument("--write", action="store_true", help="keep the figures in place of comparing them")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of a ratio")
    arguments = parser.parse_args()
    try:
        before = {} if arguments.write else {name: committed(RESULTS, name) for name in arguments.only}
    except NoFiguresError as error:
        parser.exit(2, f"{error}\n")
    now = {name: measure(name) for name in arguments.only}
    if arguments.write:
        for name, figures in now.items():
            keep(RESULTS, name, figures)
        return 0
    found = {name: compare(before[name]["ratios"], now[name]["ratios"], arguments.tolerance) for name in now}
    for name, figures in before.items():
        print(f"\n{name}: committed figures of {in_words(figures['machine'])}", end="")
    print(f"\n\n{table(found)}")
    return int(any(line.bad for lines in found.values() for line in lines))


if __name__ == "__main__":
    sys.exit(main())
