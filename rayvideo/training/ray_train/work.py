"""What Ray Train starts in each worker. Its controller imports this file too, so the top imports nothing heavy."""

from __future__ import annotations

import logging
from typing import Any

import ray

# Internal: see `work`.
from ray.train.v2._internal.execution import context

from rayvideo.importing import quickly


def work(config: dict[str, Any]) -> None:
    """Train by `config["plan"]`, a ref of a `Plan`: as a ref, the controller passes it on unread."""
    with quickly():
        from rayvideo.training.loop import train

    # Internal: Ray Train writes a line into the job's log at every report, by a logger that is named after this file of
    # its own. `LoggingConfig` is public, but sets the level of all of Ray Train's loggers at once.
    logging.getLogger(context.__file__).setLevel(logging.WARNING)
    train(ray.get(config["plan"]))
