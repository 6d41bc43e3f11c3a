"""The same world once more as a rectified flow: a small model in Wan's format, of 17 frames through a causal VAE."""

LENGTH = 17
"""Frames of its clips: 4n + 1, and as long as the other model's."""
