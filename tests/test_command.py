"""Every job starts and fails the same way."""

from __future__ import annotations

import argparse
import io
import sys

import pytest

from rayvideo import command
from rayvideo.data.manifest import ManifestError
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
    assert command.logical_cpus(recipe(**sections), cores) == cpus


def test_progress_in_a_log_is_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    list(progress("decoding", 3, range(3)))
    assert "\r" not in log.getvalue()
    assert [line[:17] for line in log.getvalue().split("\n") if line] == ["decoding: 0/3 cli", "decoding: 3/3 cli"]
