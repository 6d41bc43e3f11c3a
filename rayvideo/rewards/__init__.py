"""Frozen judges of frames, and how frame scores become the reward of a video."""

from rayvideo.rewards.base import Reward, RewardError, clamp_pixels, load_reward, options_of, resolve

__all__ = ["Reward", "RewardError", "clamp_pixels", "load_reward", "options_of", "resolve"]
