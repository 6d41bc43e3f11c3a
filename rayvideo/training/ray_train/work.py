"""What Ray Train starts in each worker. Its controller imports this file too, so the top imports nothing heavy."""

from __future__ import annotations

from typing import Any

import ray


def work(config: dict[str, Any]) -> None:
    """Train by `config["plan"]`, a ref of a `Plan`: as a ref, the controller passes it on unread."""
    from rayvideo.training.loop import train

    train({"plan": ray.get(config["plan"])})
