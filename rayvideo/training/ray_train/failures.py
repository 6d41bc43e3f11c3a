"""What happens when a worker fails.

Ray Train's controller imports this file, and workers wait for the controller: so it imports nothing heavy.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

# Internal: what Ray Train raises for a worker whose process is gone. The public errors don't tell that from a worker
# that raised something, and the lines for the user differ.
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from rayvideo.errors import UserError
from rayvideo.runs.attempts import note_lost
from rayvideo.runs.news import Board, News

logger = logging.getLogger(__name__)

LONGEST = 400  # characters of a reason


class OnFailure(UserCallback):
    """Ends the run after an error that only the user can mend; otherwise notes why workers are started again.

    Args:
        run_folder: Path or URI; the reason is written there for the record of the attempt that follows.
        board: Shows the reason on the driver's terminal meanwhile.
    """

    def __init__(self, run_folder: str, board: Board) -> None:
        self._run_folder = run_folder
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before Ray Train starts lost workers again, whatever they failed of; raising here ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        # When a process ends, the other workers fail too, and know no more than that it is gone. It comes first.
        ended = {rank: e for rank, e in worker_exceptions.items() if isinstance(e, WorkerHealthCheckFailedError)}
        rank, error = next(iter((ended or worker_exceptions).items()))
        why = f"worker {rank} was lost: {reason(error)}"
        logger.warning("%s; starting again from the newest checkpoint", why)
        note_lost(self._run_folder, why)
        self._board.pin(News(f"starting workers again: {why}"))


def reason(error: Exception) -> str:
    """Why a worker was lost, in a line.

    Of a process that ended, Ray says so only after the names of worker and actor.
    """
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    lines = str(error).splitlines()
    if isinstance(error, RayActorError) and len(lines) > 1:
        lines = [line for line in lines[1:] if not line.startswith("\t")]
    elif lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]  # what was raised stands below where
    text = " ".join(" ".join(lines).split()).rpartition("Worker exit detail: ")[2]
    return text[:LONGEST] or repr(error)
