"""What the driver hands to every worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rayvideo.data.table import LatentTable
from rayvideo.data.trimmed import Trimmed
from rayvideo.recipe import Recipe
from rayvideo.runs.news import Board
from rayvideo.serving.pool import RewardPool
from rayvideo.tracking import RunRef
from rayvideo.training.ray_train.preemption import Mailbox


@dataclass(frozen=True)
class Plan:
    """What the driver hands to every worker."""

    recipe: Recipe
    """With such a `training.accumulation` that a step has as many clips as when the run was begun."""
    run_folder: str
    """Absolute path or URI."""
    table: LatentTable
    pool: RewardPool
    held_out: RewardPool | None
    """Judges that only score previews, where `evaluation.judge_previews` says so."""
    shown: dict[str, Trimmed]
    """Embeddings of the captions whose clips are compared during training, and of ""."""
    tracking: RunRef
    call_id: str
    """Differs with every call of `finetune`."""
    start_reason: str
    """Why `finetune` was called, which is the reason of its first attempt in attempts.jsonl."""
    overruled: bool = False
    """Whether the run goes on to its last step whatever the recipe's stop rule says."""
    guards: Any = None
    """The actor `GuardsActor`; None without `evaluation.guards`."""
    mailbox: Mailbox = field(default_factory=Mailbox)
    board: Board = field(default_factory=Board)
