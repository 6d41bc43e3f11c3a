"""Wan's text-to-video family (WanPipeline): a transformer on latents of a causal VAE, trained as a rectified flow."""

from rayvideo.models.wan.family import Wan

__all__ = ["Wan"]
