"""The judges' machine is lost, and training goes on with the same numbers when there is another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_node_changes_no_number(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.lost_node", str(tmp_path / "passes.hold")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same numbers" in done.stdout
