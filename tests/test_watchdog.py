"""A test that hangs ends the run within the limit, says where it hangs, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.watchdog import EXIT_CODE, LATER_THAN_TIMEOUT_S, LIMIT

ROOT = Path(__file__).parents[1]
CONFTEST = """
import pytest
from tests.watchdog import Watchdog

def pytest_configure(config):
    config.pluginmanager.register(Watchdog(config))
"""
HANGS = """
import subprocess, sys, time
import pytest

def wait_for_ever():
    time.sleep(3600)

def start(file):
    # As Ray's do, it keeps the output open, and has a process group of its own.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    open(file, "w").write(str(child.pid))

@pytest.fixture
def hanging(tmp_path_factory):
    start("child.pid")
    if PHASE == "setup":
        wait_for_ever()
    yield
    if PHASE == "teardown":
        wait_for_ever()

def test_that_is_fine():
    pass

def test_that_hangs(hanging):
    if PHASE == "call":
        wait_for_ever()
"""


def run(folder: Path, limit: str, phase: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(f"PHASE = {phase!r}\n{HANGS}")
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, LIMIT: limit, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    # Files, not pipes: those would be waited for until the last process that has them ends.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, timeout=300)
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read())


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_a_hanging_test_is_ended_and_named(tmp_path: Path, phase: str) -> None:
    done = run(tmp_path, "5", phase)
    assert done.returncode == EXIT_CODE, done.stdout
    _, found, stack = done.stdout.partition(f"test_it.py::test_that_hangs hangs in its {phase}:\n")
    assert found, done.stdout
    assert stack.splitlines()[-2].endswith("in wait_for_ever"), "the innermost frame is not the last"
    assert stack.splitlines()[-1].strip() == "time.sleep(3600)"
    assert not psutil.pid_exists(int((tmp_path / "child.pid").read_text())), "a process was left behind"


def test_what_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "300", "nothing hangs")
    assert done.returncode == 0, done.stdout
    psutil.Process(int((tmp_path / "child.pid").read_text())).kill()


def test_the_limit_lies_between_the_others(pytestconfig: pytest.Config) -> None:
    timeout, dump = (float(pytestconfig.getini(name)) for name in ("timeout", "faulthandler_timeout"))
    assert timeout < timeout + LATER_THAN_TIMEOUT_S < dump
