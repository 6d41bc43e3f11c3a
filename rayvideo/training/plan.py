"""What the driver hands to every worker."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rayvideo.data.table import LatentTable
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import RewardPool
from rayvideo.tracking import RunRef


@dataclass(frozen=True)
class Plan:
    """What the driver hands to every worker."""

    recipe: Recipe
    run_folder: str
    """Absolute path or URI."""
    table: LatentTable
    pool: RewardPool
    shown: dict[str, Tensor]
    """Embeddings of the captions whose clips are compared during training, and of ""."""
    tracking: RunRef
    call: str
    """Differs with every call of `finetune`."""
    why: str
    """Reason of that call, for the record of attempts."""
