"""How model families noise and denoise: one contract, and a file for each kind of path between clip and noise."""

from rayvideo.schedules.base import Chain, Schedule
from rayvideo.schedules.diffusion import Diffusion
from rayvideo.schedules.flow import Flow

__all__ = ["Chain", "Diffusion", "Flow", "Schedule"]
