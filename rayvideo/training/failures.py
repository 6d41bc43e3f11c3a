"""What happens when a worker fails. Runs in Ray Train's controller, so it imports little."""

from __future__ import annotations

import logging
from typing import Any

from ray.train import UserCallback

from rayvideo.errors import UserError
from rayvideo.training.attempts import note_lost

logger = logging.getLogger(__name__)

LONGEST = 200  # characters of a reason


class OnFailure(UserCallback):
    """Ends the run where trying again can't help, and says so where it may.

    Args:
        run_folder: Where the reason is left for the attempt that follows.
    """

    def __init__(self, run_folder: str) -> None:
        self._run_folder = run_folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before Ray Train starts lost workers again, whatever they failed of; raising here ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        rank, error = next(iter(worker_exceptions.items()))
        logger.warning("worker %d was lost, starting again from the newest checkpoint: %s", rank, error)
        note_lost(self._run_folder, f"worker {rank} was lost: {' '.join(str(error).split())[:LONGEST]}")
