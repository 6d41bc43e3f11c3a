"""How another process follows a fine-tuning, and ends it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayvideo.runs.news import Board
from rayvideo.training.ray_train.preemption import Mailbox


@dataclass(frozen=True)
class Line:
    """What connects a fine-tuning with another process, wherever on the cluster the two are."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    """By which the training is asked to save its state and end."""
    board: Board = field(default_factory=Board)
    """What the training does at the moment."""
