"""What a VAE's encoder says of a clip, and the way between its numbers and those that the denoiser works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayvideo.editing import Generators, normal


@dataclass(frozen=True)
class Normaliser:
    """The affine map from the VAE's numbers z to the denoiser's latents: (z − shift)·scale, channel by channel.

    Stable Diffusion's VAE has shift 0 and scale `scaling_factor`; Wan's has each channel's mean, and 1 / std.
    """

    shift: float | Tensor = 0.0
    """One number, or one for each channel [C]."""
    scale: float | Tensor = 1.0
    """One number, or one for each channel [C]."""

    def normalise(self, z: Tensor) -> Tensor:
        """Latents for the denoiser of the VAE's numbers, whose second dimension is that of the channels."""
        return (z - _per_channel(self.shift, z)) * _per_channel(self.scale, z)

    def restore(self, latents: Tensor) -> Tensor:
        """The VAE's numbers for the denoiser's latents, whose second dimension is that of the channels."""
        return latents / _per_channel(self.scale, latents) + _per_channel(self.shift, latents)


def _per_channel(value: float | Tensor, like: Tensor) -> float | Tensor:
    """The value, on the device and in the number format of `like`, in a shape that meets its channels."""
    return value.to(like).reshape(-1, *[1] * (like.ndim - 2)) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Posterior:
    """What the VAE's encoder says of clips: a normal distribution for each of its numbers."""

    mean: Tensor
    """In the VAE's own units, [B, C, F, h, w]."""
    logvar: Tensor
    """Logarithm of the variance, [B, C, F, h, w]."""
    normaliser: Normaliser
    """The way from the VAE's units to the denoiser's."""

    def sample(self, generator: Generators = None) -> Tensor:
        """Latents [B, C, F, h, w] for the denoiser, drawn from the distribution: mean + σ·N(0, 1), normalised."""
        noise = normal(self.mean.shape, generator, self.mean.device)
        return self.normaliser.normalise(self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.dtype))

    def mode(self) -> Tensor:
        """The most likely latents [B, C, F, h, w] for the denoiser: the mean, normalised. Nothing is drawn."""
        return self.normaliser.normalise(self.mean)
