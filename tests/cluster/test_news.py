"""A worker's news reach the driver, and what Ray says of a lost one is told in a line."""

from __future__ import annotations

import os
import signal

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from rayvideo.runs.news import Board, News, Reporter
from rayvideo.training.ray_train.failures import reason

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Worker:
    def work(self, board: Board | None) -> None:
        report = Reporter(board)
        report.stepped(3, attempt=1)
        report.phase("previews of step 3", 2, 8)

    def step(self, board: Board) -> None:
        report = Reporter(board)
        report.stepped(3, attempt=1)
        report.phase("previews of step 3", 2, 8)
        report.stepped(4, pace=1.5, scores={"judge": 0.5})

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_newest_news_are_read():
    board, worker = Board(), Worker.remote()  # type: ignore[attr-defined]
    assert board.read() == News()
    ray.get(worker.work.remote(None))  # not of rank 0
    assert board.read() == News()
    ray.get(worker.work.remote(board))
    assert board.read() == News("previews of step 3", 2, 8, step=3, attempt=1)
    ray.get(worker.step.remote(board))
    assert board.read() == News(step=4, attempt=1, pace=1.5, scores={"judge": 0.5})
    board.clear()
    assert board.read() == News()


def test_a_killed_worker_is_told_with_what_killed_it():
    worker = Worker.remote()  # type: ignore[attr-defined]
    with pytest.raises(ActorDiedError) as died:
        ray.get(worker.die.remote())
    lost = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(\n  actor=…", died.value)
    why = reason(lost)
    assert "\n" not in why
    assert "killed" in why
    for name in ("Worker info", "actor_id", "class_name", "exit type"):
        assert name not in why
