"""From the command to the first optimizer step, by phase: jobs/finetune.py on the demo's recipe, as one types it.

    python -m benchmarks.startup --rounds 3 --json startup.json > startup.md
    python -m benchmarks.startup --quick                   # one run on few clips
    python -m benchmarks.startup --against ../before       # another checkout too; the two take turns

A phase begins with a line that the job prints, so that any checkout can be measured as it is; workers' phases are seen
to half a second. Medians of the rounds after the first, which warms up: it fills the page cache and makes MLflow's
database. Told beside them are the CPU seconds of each kind of process up to the same moment, which other work on the
machine changes less. A round's yardstick is a Python that imports the libraries and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.machine import in_words, machine
from benchmarks.processes import Processes
from rayvideo.menagerie.clips import training_scenes, write_clips
from rayvideo.paths import path_argument

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "jobs/recipes/menagerie-demo.yaml"
FIRST, END = "first step", "end of the first step"
PHASES = {
    "imports, checks, Ray": None,
    "encoders start": r"^encoding clips: 0/",
    "clips and captions": r"^encoding clips: [1-9]",
    "previews' captions, judge": r"embedding \d+ captions of previews|^loading judges",
    "workers: processes, imports": "fine-tuning: starting workers",
    "workers: model, DeepSpeed": "fine-tuning: (looking for checkpoints|loading the model)",
    "previews of the base": "^previews of the base: ",
    FIRST: "fine-tuning: first step",
    END: "^previews of |fine-tuning: checkpoint of step 1|fine-tuning: 1/1 steps",
}
"""Phase -> what the line says with which it begins; None: it begins with the command. END follows FIRST alone."""

YARDSTICK = "import torch, diffusers, transformers, peft, deepspeed"

Line = tuple[float, str]
"""Seconds since the command, and what was printed then."""


def phases(lines: Iterable[Line]) -> dict[str, float]:
    """Seconds of each phase up to the end of the first step, in the order in which they began.

    Raises:
        ValueError: there was no first step.
    """
    began = {name: 0.0 for name, pattern in PHASES.items() if pattern is None}
    for seconds, line in lines:
        for name in _begin_with(line, FIRST in began):
            began.setdefault(name, seconds)
    if END not in began:
        raise ValueError("the job never came to the end of its first step")
    order = sorted(began, key=lambda name: (began[name], name == END))
    return {name: began[after] - began[name] for name, after in pairwise(order)}


def _begin_with(line: str, stepping: bool) -> list[str]:
    """The phases that begin with a line. Once it is `stepping`, only the end is left to come."""
    names = [END] if stepping else [name for name in PHASES if name != END]
    return [name for name in names if re.search(PHASES[name] or "$^", line)]


def command_line(storage: Path, clips: Path, name: str, overrides: Sequence[str]) -> list[str]:
    """The job as it is typed in a checkout's folder."""
    return [
        sys.executable,
        "jobs/finetune.py",
        *("--recipe", RECIPE, f"data.manifest={clips}", f"storage={storage}", f"tracking.run_name={name}"),
        *("training.steps=1", "training.warmup_steps=0", *overrides),
    ]


@dataclass(frozen=True)
class Start:
    """One start."""

    phases: dict[str, float]
    """Seconds of each."""
    cpu: dict[str, float]
    """Kind of process -> CPU seconds of all that there were until the end of the first step."""
    yardstick: float
    """Seconds of `YARDSTICK` in the same round."""

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(self.phases.values())


def start(checkout: Path, command: Sequence[str]) -> Start:
    """Run the job to its end and the yardstick, and return how long its start took."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    began, lines = time.perf_counter(), []
    cpu: dict[str, float] = {}
    stepping = False
    with (
        subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job,
        Processes(job.pid) as processes,
    ):
        assert job.stdout is not None
        for line in job.stdout:
            lines.append((time.perf_counter() - began, line.rstrip()))
            begun = _begin_with(line, stepping)
            stepping = stepping or FIRST in begun
            if END in begun and not cpu:
                cpu = processes.cpu_seconds()
    if job.returncode:
        raise SystemExit("\n".join([line for _, line in lines[-20:]] + [f"{checkout}: exit code {job.returncode}"]))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", YARDSTICK], check=True, capture_output=True)
    return Start(phases(lines), cpu, time.perf_counter() - began)


def ratios(starts: Sequence[Start]) -> dict[str, float]:
    """Figures that depend little on how fast a machine is; the lower, the better."""
    return {
        "start / yardstick": median(start.seconds / start.yardstick for start in starts),
        "CPU seconds / yardstick": median(sum(start.cpu.values()) / start.yardstick for start in starts),
    }


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians by phase of each checkout's runs, and of their sums; with two checkouts, how the first's compare."""
    names = list(dict.fromkeys(phase for runs in found.values() for run in runs for phase in run))
    compared = len(found) > 1
    rows = ["| | " + " | ".join(f"{name}, s" for name in found) + (" | ratio |" if compared else " |")]
    rows.append("|---" * (len(found) + 1 + compared) + "|")
    for name in [*names, "together"]:
        columns = [
            [sum(run.values()) if name == "together" else run.get(name, 0.0) for run in runs] for runs in found.values()
        ]
        cells = [f"{median(seconds):.1f}" for seconds in columns]
        if compared:
            ratios = [a / b for a, b in zip(columns[0], columns[1], strict=True) if b]
            cells.append(f"{median(ratios):.2f}" if ratios else "")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    parser.add_argument("--clips", type=int, default=160, help="as many as the demo has")
    parser.add_argument("--against", type=path_argument, help="another checkout of this repository")
    parser.add_argument("--quick", action="store_true", help="one round on 16 clips, and none that warms up")
    parser.add_argument("--json", type=Path, help="file for every round's figures")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    rounds, warm, clips = (1, 0, 16) if arguments.quick else (arguments.rounds, 1, arguments.clips)
    checkouts = {"this checkout": ROOT}
    if arguments.against:
        checkouts["the other"] = arguments.against.resolve()
    about = machine()
    found: dict[str, list[Start]] = {name: [] for name in checkouts}
    with TemporaryDirectory() as folder:
        listing = write_clips(Path(folder, "clips"), training_scenes(clips, 100), 0.8)
        for number in range(rounds + warm):
            for name in list(checkouts)[:: -1 if number % 2 else 1]:
                run_name = f"{'this' if checkouts[name] == ROOT else 'other'}-{number}"
                one = start(checkouts[name], command_line(Path(folder), listing, run_name, arguments.overrides))
                print(f"{name}, round {number}: {one.seconds:.1f} s", file=sys.stderr, flush=True)
                if number >= warm:
                    found[name].append(one)
    if arguments.json:
        rows = {name: [asdict(one) for one in starts] for name, starts in found.items()}
        figures = {"machine": about, "clips": clips, "rounds": rows, "ratios": ratios(found["this checkout"])}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{in_words(about)} {clips} clips, median of {rounds}.\n")
    print(table({name: [one.phases for one in starts] for name, starts in found.items()}))
    print("\nCPU seconds up to the end of the first step:\n")
    print(table({name: [one.cpu for one in starts] for name, starts in found.items()}))


if __name__ == "__main__":
    main()
