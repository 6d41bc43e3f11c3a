"""Which checkpoints are kept.

Ray Train's controller imports this file, and workers wait for the controller: so it imports nothing heavy.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.train import Checkpoint, UserCallback

from rayvideo.runs.checkpoints import prune

logger = logging.getLogger(__name__)


class Retention(UserCallback):
    """Deletes old checkpoints once a new one is whole; what the run's stop rule names as best so far stays.

    Args:
        keep: Newest ones that stay.
        keep_best: Whether the one of the highest reward stays as well.
    """

    def __init__(self, run_folder: str, keep: int, keep_best: bool) -> None:
        self._run_folder = run_folder
        self._keep = keep
        self._keep_best = keep_best

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Called when every worker's part of a checkpoint is in storage."""
        try:
            told = metrics[0]  # by rank 0's call of ray.train.report
            spared = {*told["keep"], *([told["best"]] if self._keep_best else [])}
            prune(self._run_folder, told["step"], self._keep, spared)
        except OSError as error:  # no reason to end a run: the next checkpoint tries again
            logger.warning("old checkpoints in %s can't be deleted: %s", self._run_folder, error)
