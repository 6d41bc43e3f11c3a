"""The learning rate's way."""

from __future__ import annotations

from rayvideo.sections import Training


def learning_rate(options: Training, step: int) -> float:
    """Learning rate of optimizer step `step`, counted from 1: linear warm-up, then constant."""
    return options.lr * min(1.0, step / max(1, options.warmup_steps))
