"""Frozen judges of frames, and how frame scores become the reward of a video."""

from rayvideo.rewards.base import Reward, RewardError, check_judge, load_reward, options_of, resolve
from rayvideo.rewards.pixels import clamp_pixels

__all__ = ["Reward", "RewardError", "check_judge", "clamp_pixels", "load_reward", "options_of", "resolve"]
