"""Judges in the caller's own process, for small runs and measurements that need no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rayvideo.recipe import Judge
from rayvideo.rewards.base import load_reward
from rayvideo.serving.actor import Array, judge_frames
from rayvideo.serving.pool import RewardPool


class LocalPool(RewardPool):
    """A `RewardPool` whose judges answer at once, on `device`."""

    def __init__(self, judges: Sequence[Judge], device: torch.device | str = "cpu") -> None:
        super().__init__(())
        self.judges = tuple(judges)
        self._device = torch.device(device)
        self._rewards = [load_reward(judge, self._device) for judge in judges]

    def wait_until_ready(self) -> None:
        """Nothing to wait for: the judges were loaded when the pool was made."""

    def _call(self, frames: Array, prompts: list[str], gradient: bool) -> list[Any]:
        return [judge_frames(reward, frames, prompts, gradient, self._device) for reward in self._rewards]

    def _answer(self, judge: Judge, call: Any, since: float) -> tuple[Array, Array | None]:
        return call
