"""Every job starts and fails the same way."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from contextlib import ExitStack

import pytest

from rayvideo import capacity, command, connection
from rayvideo.data.manifest import ManifestError
from rayvideo.errors import RecipeError
from rayvideo.progress import progress
from rayvideo.recipe import Recipe, parse_recipe


def recipe(**sections) -> Recipe:
    tree = {"model": {"path": "m"}, "data": {"manifest": "list.txt"}, "reward": {"judges": [{"name": "judge"}]}}
    return parse_recipe(tree | sections)


def test_overrides_may_stand_before_between_and_after_options(monkeypatch):
    seen: list[argparse.Namespace] = []
    parser = command.recipe_arguments("test")
    parser.add_argument("--out")
    monkeypatch.setattr(sys, "argv", ["job", "a=1", "--recipe", "r.yaml", "b=2", "--out", "o", "c=3"])
    command.run(seen.append, parser)
    assert (seen[0].recipe, seen[0].out, seen[0].overrides) == ("r.yaml", "o", ["a=1", "b=2", "c=3"])


def test_a_user_error_ends_in_one_line_and_exit_code_1(monkeypatch):
    def fail(args):
        raise ManifestError("list.txt line 3: no video")

    monkeypatch.setattr(sys, "argv", ["job", "--recipe", "r.yaml"])
    with pytest.raises(SystemExit) as stop:
        command.run(fail, command.recipe_arguments("test"))
    assert stop.value.code == "error: list.txt line 3: no video"  # a string exits with 1 and goes to stderr


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["job", "--recipe", "r.yaml"])
    with pytest.raises(ZeroDivisionError):
        command.run(fail, command.recipe_arguments("test"))


@pytest.mark.parametrize(
    ("sections", "cores", "cpus"),
    [
        ({}, 2, 4),
        ({}, 16, 16),
        ({"training": {"workers": 8}}, 2, 9),
        ({"data": {"manifest": "l", "encoders": 5, "encoder_cpus": 2.0, "decode_cpus": 0.5}}, 2, 12),
        ({"evaluation": {"workers": 6, "judges": [{"name": "other", "num_cpus": 1.5}]}}, 2, 9),
    ],
)
def test_local_ray_fits_the_greediest_phase_and_a_task_beside_it(sections, cores, cpus):
    assert connection.logical_cpus(recipe(**sections), cores) == cpus


def test_sigterm_closes_what_is_open_as_ctrl_c_does(monkeypatch):
    closed: list[type[BaseException] | None] = []

    def work(args):
        with ExitStack() as stack:
            stack.push(lambda kind, *_: closed.append(kind))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    monkeypatch.setattr(sys, "argv", ["job", "--recipe", "r.yaml"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            command.run(work, command.recipe_arguments("test"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stop.value.code, closed) == (143, [KeyboardInterrupt])


def test_a_submitted_job_does_not_write_into_its_working_folder(monkeypatch):
    written = {"storage": "s3://bucket/runs", "--out": "/shared/out", "--other": None}
    command.refuse_lost({"storage": "runs"})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    command.refuse_lost(written)
    with pytest.raises(RecipeError, match="^storage 'runs' is relative"):
        command.refuse_lost(written | {"storage": "runs"})


def test_only_custom_resources_may_be_named():
    for bad, why in (({"GPU": 1}, "GPU is not a custom resource"), ({"trainer": 0}, "amounts must be above 0")):
        with pytest.raises(RecipeError, match=rf"^training\.resources: .*{why}$"):
            recipe(training={"resources": bad})


def test_every_part_says_what_it_reserves():
    tree = {"data": {"manifest": "l", "encoder_gpus": 0.5, "encoder_resources": {"trainer": 0.5}}}
    reserved = capacity.reservations(recipe(**tree, training={"gpus_per_worker": 1, "resources": {"trainer": 1}}))
    assert reserved["training.…_per_worker"] == {"CPU": 1, "GPU": 1, "trainer": 1}
    assert reserved["data.encoder_…"] == {"CPU": 1, "GPU": 0.5, "trainer": 0.5}
    assert reserved["data.decode_…"].keys() == {"CPU", "memory"}
    assert reserved["reward.judges.0"] == {"CPU": 0, "GPU": 0}


def test_what_fits_on_no_node_is_named_with_what_there_is():
    wanted = recipe(training={"gpus_per_worker": 1, "resources": {"trainer": 1}})
    nodes = [{"CPU": 8.0, "GPU": 4.0, "node:x": 1.0, "memory": 2.0**33}, {"CPU": 8.0, "trainer": 4.0}]
    (text,) = capacity.misfits(wanted, ("training", "judges", "data"), nodes)
    there = "8 CPU, 4 GPU, 8.0 GiB memory; 8 CPU, 4 trainer"
    assert text == f"training.…_per_worker: needs a node with 1 CPU, 1 GPU, 1 trainer, but there is only: {there}"
    assert capacity.misfits(wanted, capacity.PARTS, [nodes[0] | nodes[1]]) == []


def test_progress_in_a_log_is_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    list(progress("decoding", 3, range(3)))
    assert "\r" not in log.getvalue()
    assert [line[:17] for line in log.getvalue().split("\n") if line] == ["decoding: 0/3 cli", "decoding: 3/3 cli"]


def test_progress_is_told_less_often_as_time_goes_on_and_nothing_twice(monkeypatch):
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    with progress("tuning", 10_000, unit="step") as bar:
        bar._time = lambda: now[0]  # type: ignore[attr-defined]
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(10_000):
            now[0] += 60.0  # a week
            bar.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == len(set(lines)) < 1000
    assert lines[-1].startswith("tuning: 10000/10000 steps")
