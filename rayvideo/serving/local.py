"""Judges in the caller's own process, for small runs and measurements that need no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rayvideo.rewards.loading import load_reward
from rayvideo.sections import Judge
from rayvideo.serving.judging import judge_items, view_of
from rayvideo.serving.pool import RewardPool, Sent
from rayvideo.serving.wire import Pixels, View


class LocalPool(RewardPool):
    """A `RewardPool` whose judges answer at once, on `device`, with the numbers that remote ones give."""

    def __init__(self, judges: Sequence[Judge], device: torch.device | str = "cpu") -> None:
        self.judges = tuple(judges)
        self._device = torch.device(device)
        self._rewards = {judge.name: load_reward(judge, self._device) for judge in judges}
        self._views = [view_of(reward) for reward in self._rewards.values()]

    def wait_until_ready(self, told: Callable[[str], object] = lambda judge: None) -> None:
        """Nothing to wait for: the judges were loaded when the pool was made."""
        for judge in self.judges:
            told(judge.name)

    def close(self) -> None:
        """Nothing to end."""

    def _resized(self, items: Tensor, views: Sequence[View]) -> Tensor:
        return items  # nothing is sent: the judges resize

    def _pack(self, items: Tensor) -> Any:
        return items.detach().float().cpu().numpy()

    def _ask(self, judge: Judge, sent: Sent) -> Any:
        reward, size = self._rewards[judge.name], judge.micro_batch
        return judge_items(reward, sent.packed, sent.prompts, sent.gradient, self._device, size, sent.times)

    def _answer(self, judge: Judge, call: Any, sent: Sent) -> tuple[tuple[Pixels, Pixels | None], int]:
        return call, judge.micro_batch
