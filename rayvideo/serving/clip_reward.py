"""How a clip is judged by all judges of a pool (stand-in until merged)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rayvideo.rewards.temporal import attenuation, video_reward
from rayvideo.sections import Rewards
from rayvideo.serving.pool import Pending, RewardPool


@dataclass
class Request:
    pending: Pending
    drawn: Tensor


class Judged(NamedTuple):
    rewards: Tensor
    scores: dict[str, Tensor]
    gradient_norm: dict[str, float]
    cosine: dict[tuple[str, str], float]
    micro_batch: dict[str, int]


class ClipReward:
    def __init__(self, pool: RewardPool, options: Rewards, frames: int, fps: float) -> None:
        self.pool, self.options, self.frames = pool, options, frames

    def shown(self, drawn: Tensor) -> Tensor:
        return drawn

    def submit(self, pixels: Tensor, shown: Tensor, drawn: Tensor, captions: Sequence[str], gradient: bool) -> Request:
        repeated = [caption for caption in captions for _ in range(drawn.shape[1])]
        return Request(self.pool.submit(pixels.flatten(0, 1), repeated, gradient), drawn)

    def result(self, request: Request) -> Judged:
        pending, drawn = request.pending, request.drawn
        scores = self.pool.result(pending).view(drawn.shape)
        weights = attenuation(drawn, self.frames, self.options.attenuation).to(scores.device)
        raw = {judge: each.view(drawn.shape) for judge, each in pending.raw.items()}
        return Judged(video_reward(scores, weights), raw, pending.gradient_norm, pending.cosine, pending.micro_batch)
