"""Who is asked to stop, and that a second signal is not swallowed. tests/cluster/test_finetune.py stops whole runs."""

from __future__ import annotations

import os
import signal
import time
from threading import Timer

import pytest
import ray
from ray.exceptions import RayActorError

from rayvideo.training.ray_train import preemption
from rayvideo.training.ray_train.preemption import Mailbox, OnSigterm, on_signals

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Worker:
    """As Ray Train's: its main thread is there for calls."""

    def __init__(self) -> None:
        OnSigterm().after_init_train_context()

    def pid(self) -> int:
        return os.getpid()

    def asked(self) -> bool:
        return preemption._asked.is_set()

    def wait(self) -> None:
        time.sleep(600)

    def wait_for(self, mailbox: Mailbox) -> None:
        while not mailbox.asked():
            time.sleep(0.02)

    def read(self, mailbox: Mailbox) -> bool:
        return mailbox.asked()


def test_sigterm_asks_a_worker_and_a_second_one_ends_it():
    worker = Worker.remote()  # type: ignore[attr-defined]
    pid = ray.get(worker.pid.remote())
    assert not ray.get(worker.asked.remote())
    os.kill(pid, signal.SIGTERM)
    while not ray.get(worker.asked.remote()):
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(RayActorError):
        ray.get(worker.wait.remote())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_driver_reaches_the_workers(number):
    before, mailbox = signal.getsignal(number), Mailbox()
    worker = Worker.remote()  # type: ignore[attr-defined]
    with on_signals(mailbox) as caught:
        assert not ray.get(worker.read.remote(mailbox))
        Timer(0.5, os.kill, (os.getpid(), number)).start()
        ray.get(worker.wait_for.remote(mailbox))  # where a driver is when the signal comes
        assert caught == [number]
        assert signal.getsignal(number) == before, "a second signal would be swallowed"
    assert not mailbox.asked()
