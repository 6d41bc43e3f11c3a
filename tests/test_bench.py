"""What `make bench` makes of figures, planted ones: nothing is timed here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, startup
from benchmarks.bench import BETTER, GONE, NEW, SAME, WORSE, compare
from benchmarks.ingest import Measured, Memory
from benchmarks.ingest import ratios as ingest_ratios
from benchmarks.machine import machine
from benchmarks.processes import Processes, kind_of
from benchmarks.step import OURS, QUICK, RELEASE
from benchmarks.step import ratios as step_ratios
from benchmarks.step import summed_up as step_rows


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (0.50, 0.59, SAME),
        (0.50, 0.60, WORSE),
        (0.50, 0.40, BETTER),
        (0.50, 0.41, SAME),
        (0.002, 0.02, SAME),  # a share of next to nothing
        (0.002, 0.03, WORSE),
        (None, 0.5, NEW),
        (0.5, None, GONE),
    ],
)
def test_a_ratio_is_worse_beyond_its_tolerance(old: float | None, new: float | None, verdict: str) -> None:
    before, now = ({} if each is None else {"ratio": each} for each in (old, new))
    (line,) = compare(before, now)
    assert line.verdict == verdict
    assert line.bad == (verdict in (WORSE, GONE))


def test_the_tolerance_is_an_option() -> None:
    assert [line.verdict for line in compare({"ratio": 0.5}, {"ratio": 0.6}, tolerance=0.3)] == [SAME]


def planted(monkeypatch: pytest.MonkeyPatch, results: Path, ratios: dict[str, dict[str, float]]) -> None:
    """Benchmarks that have these ratios and take no time, and an empty folder for committed figures."""
    figures: dict[str, Any] = {name: {"machine": machine(), "ratios": found} for name, found in ratios.items()}
    monkeypatch.setattr(bench, "RESULTS", results)
    monkeypatch.setattr(bench, "measure", lambda name: figures[name])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return bench.main()


def test_what_was_written_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--only", "step", "startup")
    planted(monkeypatch, tmp_path / "results", {"step": {"time": 0.5, "memory": 0.4}, "startup": {"start": 9.0}})
    assert run(monkeypatch, "--write", *only) == 0
    kept = json.loads((tmp_path / "results/step.json").read_text())
    assert kept["ratios"] == {"time": 0.5, "memory": 0.4}
    assert {"date", "cpu"} <= set(kept["machine"])
    assert run(monkeypatch, *only) == 0
    capsys.readouterr()
    planted(monkeypatch, tmp_path / "results", {"step": {"time": 0.7, "memory": 0.4}, "startup": {"start": 5.0}})
    assert run(monkeypatch, *only) == 1
    told = capsys.readouterr().out.splitlines()
    assert f"| step | time | 0.500 | 0.700 | {WORSE} |" in told
    assert "| step | memory | 0.400 | 0.400 |  |" in told
    assert f"| startup | start | 9.000 | 5.000 | {BETTER} |" in told
    assert run(monkeypatch, "--only", "startup") == 0


def test_without_committed_figures_it_says_how_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, tmp_path, {"step": {"time": 0.5}})
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--only", "step")
    assert "step.json: no such figures" in (said := capsys.readouterr().err)
    assert "--write --only step" in said


@pytest.mark.parametrize("name", bench.SHORT)
def test_each_short_benchmark_understands_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *options = bench.command(name, Path("figures.json"))
    monkeypatch.setattr(sys, "argv", [module, *options, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(module).main()
    assert "--quick" in capsys.readouterr().out


def test_a_step_is_compared_with_the_releases() -> None:
    ours = QUICK[1]
    seconds, sizes = {RELEASE: [2.0, 4.0, 3.0], ours: [1.0, 1.0, 1.2]}, {RELEASE: (50.0, 40.0), ours: (20.0, 10.0)}
    ratios = step_ratios(step_rows(seconds, sizes))
    assert ratios == pytest.approx({f"{ours}: time": 0.4, f"{ours}: peak memory": 0.4})
    assert set(QUICK) <= {RELEASE, *OURS}


def test_ingest_is_compared_with_the_loop_and_with_fewer_clips() -> None:
    found = {"VP9": {"prepare": [Measured(9.0, 8.0, 30.0)], "plain loop": [Measured(3.0, 4.0, 20.0)]}}
    grown = {640: (Measured(1.0, 1.0, 1.0), Memory(1100.0)), 64: (Measured(1.0, 1.0, 1.0), Memory(1000.0))}
    assert ingest_ratios(found, grown) == {
        "a clip, prepare / plain loop: VP9": 0.5,
        "private memory, 10 times the clips": 1.1,
    }


def test_a_start_is_compared_with_its_yardstick() -> None:
    starts = [startup.Start({"imports": 10.0, "first step": 20.0}, {"driver": 40.0, "judge": 5.0}, 3.0)]
    assert startup.ratios(starts) == {"start / yardstick": 10.0, "CPU seconds / yardstick": 15.0}


def test_cpu_seconds_are_counted_of_children_that_have_ended(tmp_path: Path) -> None:
    enough = tmp_path / "enough"  # however rarely they are looked at on a busy machine
    burn = f"import os\nwhile not os.path.exists({str(enough)!r}): pass"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('ended', flush=True)"
    job = subprocess.Popen(
        [sys.executable, "-c", f"{parent}\nsys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with job, Processes(job.pid) as processes:
        assert job.stdin is not None
        assert job.stdout is not None
        while sum(processes.cpu_seconds().values()) < 1.0:
            assert job.poll() is None
        enough.touch()
        assert job.stdout.readline() == b"ended\n"
        job.stdin.close()
    assert sum(processes.cpu_seconds().values()) >= 1.0


@pytest.mark.parametrize(
    ("words", "before", "kind"),
    [
        (["/venv/bin/python", "-u", "/lib/ray/default_worker.py", "--node=1"], "", "default_worker.py"),
        (["ray::IDLE", ""], "default_worker.py", "IDLE"),
        (["ray::RayTrainWorker.run_train_fn", ""], "IDLE", "RayTrainWorker"),
        (["ray::TrainController.run", ""], "setup_worker.py", "TrainController"),
        (["ray::IDLE"], "MapBatches(decode)", "MapBatches(decode)"),
        (["/venv/bin/python", "jobs/finetune.py", "--recipe"], "", "finetune.py"),
        (["/ray/core/raylet", "--store"], "", "raylet"),
    ],
)
def test_processes_are_told_apart_by_what_they_do(words: list[str], before: str, kind: str) -> None:
    assert kind_of(words, before) == kind
