"""Frozen judges of frames and of clips, and how their scores become the reward of a video."""

from rayvideo.rewards.base import Reward, RewardError
from rayvideo.rewards.clip_judge import ClipJudge
from rayvideo.rewards.loading import check_judge, load_reward, resolve
from rayvideo.rewards.options import options_of
from rayvideo.rewards.pixels import clamp_pixels

__all__ = [
    "ClipJudge",
    "Reward",
    "RewardError",
    "check_judge",
    "clamp_pixels",
    "load_reward",
    "options_of",
    "resolve",
]
