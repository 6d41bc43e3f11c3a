"""What a run takes of its machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rayvideo.tracking import Tracker, create_run
from tests.tracking.test_run import recipe


def test_the_machine_is_watched_and_the_watching_goes_on_after_a_resume(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    ref = create_run(recipe(storage), storage / "watched")
    client = MlflowClient(ref.uri)

    def steps() -> list[int]:
        return sorted(
            point.step for point in client.get_metric_history(ref.run_id, "system/cpu_utilization_percentage")
        )

    for _ in range(2):
        before, tracker = len(steps()), Tracker(ref)
        tracker.watch_machine()
        while len(steps()) < before + 2:
            time.sleep(0.1)
        tracker.unwatch_machine()
    assert steps() == list(range(len(steps())))  # each once
    ended = len(steps())
    time.sleep(0.5)
    assert len(steps()) == ended
    assert {"system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= set(
        client.get_run(ref.run_id).data.metrics
    )


def test_a_machine_that_is_not_watched_needs_no_end(storage: Path) -> None:
    Tracker(create_run(recipe(storage), storage / "unwatched")).unwatch_machine()
