"""Asked to stop: workers agree on a step after which they save their state and end, and the driver sees what is next.

A worker is asked by SIGTERM, by Ray's notice that a node will be taken away, by Ray Train when nodes came (elastic.py),
or by the driver, which SIGTERM and SIGINT ask.
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_put
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

logger = logging.getLogger(__name__)

STOP = "stop"
"""Beside the values of a step, of which all workers learn the mean: above 0 if anybody was asked."""

_asked = threading.Event()  # of this worker's process


@dataclass(frozen=True)
class Mailbox:
    """Where a driver leaves word for its workers: a key in the cluster's own store, which needs no process."""

    key: str = field(default_factory=lambda: f"rayvideo/stop/{uuid.uuid4().hex}")

    def ask(self) -> None:
        """Ask the workers to stop."""
        _internal_kv_put(self.key, b"")

    def asked(self) -> bool:
        return bool(_internal_kv_exists(self.key))

    def clear(self) -> None:
        _internal_kv_del(self.key)


def ask() -> None:
    """Ask the worker of this process to stop."""
    _asked.set()


def asked(mailbox: Mailbox, rank: int) -> bool:
    """Whether this worker knows that it was asked to stop; others may not know yet."""
    # Not ray.train.get_preemption_info(), for which all workers would wait for each other once more.
    notice = get_train_context().preemption_context.preemption_info
    return notice is not None or _asked.is_set() or (rank == 0 and mailbox.asked())


class OnSigterm(WorkerCallback):
    """Makes the first SIGTERM ask a worker, and leaves a second one to Ray. Runs in the worker's main thread."""

    def after_init_train_context(self) -> None:
        """Called before training starts."""
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            ask()
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, handle)


@contextmanager
def on_signals(mailbox: Mailbox) -> Iterator[list[signal.Signals]]:
    """While the block runs, the first SIGTERM or SIGINT asks the workers to stop; a second one acts as before.

    Yields the list that the signal is put into. In threads other than the main one, which gets the signals, it stays
    empty.
    """
    caught: list[signal.Signals] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        caught.append(signal.Signals(number))
        logger.warning("%s: the run is saved after this step and ends; a second one ends it now", caught[0].name)
        mailbox.ask()

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        restore()
        mailbox.clear()
