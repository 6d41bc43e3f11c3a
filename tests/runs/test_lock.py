"""A run has one driver, and a driver that is gone holds nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayvideo.errors import RecipeError
from rayvideo.runs.lock import only_driver

HOLD = """
import sys
from rayvideo.runs.lock import only_driver
with only_driver(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize("bucket", [False, True], ids=["path", "bucket"])
def test_a_second_driver_is_refused_until_the_first_one_is_gone(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = "s3://bucket/runs/first" if bucket else str(tmp_path / "runs" / "first")
    command = [sys.executable, "-c", HOLD, folder]
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"held\n"
    refusal = rf"first: process {driver.pid} on .* trains this run already; wait for it"
    with pytest.raises(RecipeError, match=refusal), only_driver(folder):
        pass
    driver.kill()
    driver.wait()
    with only_driver(folder), only_driver(folder.replace("first", "other")):
        pass


def test_a_start_that_came_to_nothing_leaves_no_folder(tmp_path):
    with only_driver(str(tmp_path / "first")):
        pass
    assert list(tmp_path.iterdir()) == []
    with only_driver(str(tmp_path / "first")):
        (tmp_path / "first" / "recipe.yaml").touch()
    assert (tmp_path / "first" / "recipe.yaml").exists()
