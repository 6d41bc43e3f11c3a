"""How a training is asked to stop: its workers save their state after the current step, and end.

A worker is asked to by SIGTERM, by Ray's notice that its node will be taken away, by `elastic.py` when the number of
workers is to change, or by the driver, when that gets SIGTERM or SIGINT itself. One worker that knows of it is enough:
with each step's values the workers exchange whether anybody was asked (`STOP`). What happens next is the driver's
decision: it starts other workers, or ends.
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

# Internal: the key-value store of Ray's control service, by which a driver reaches workers in the middle of a step,
# wherever they run. The public way is an actor, a process more that can be lost and has to be scheduled.
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_put

# Internal: a callback that runs in the worker's main thread, where alone signal handlers can be set, after Ray has set
# its own. The public `UserCallback` runs in the controller, and the training function in another thread.
from ray.train.v2._internal.execution.callback import WorkerCallback

# Internal: whether this worker's node is to be taken away. The public `ray.train.get_preemption_info()` makes all
# workers wait for each other at each call.
from ray.train.v2._internal.execution.context import get_train_context

logger = logging.getLogger(__name__)

STOP = "stop"
"""Key beside a step's values, of which all workers learn the mean: above 0 if any worker was asked to stop."""

_asked = threading.Event()  # set when the worker of this process was asked


@dataclass(frozen=True)
class Mailbox:
    """Where a driver leaves word for its workers that they should stop: a key in the store of Ray's control service."""

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
    notice = get_train_context().preemption_context.preemption_info
    return notice is not None or _asked.is_set() or (rank == 0 and mailbox.asked())


class OnSigterm(WorkerCallback):
    """Makes the first SIGTERM ask a worker, and leaves a second one to Ray. Runs in the worker's main thread."""

    def after_init_train_context(self) -> None:
        """Called by Ray Train before the training function starts."""
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
