"""Frozen judges of frames, and how frame scores become the reward of a video."""

from rayvideo.rewards.base import Reward, RewardError, check_judge, clamp_pixels, load_reward, options_of, resolve

__all__ = ["Reward", "RewardError", "check_judge", "clamp_pixels", "load_reward", "options_of", "resolve"]
