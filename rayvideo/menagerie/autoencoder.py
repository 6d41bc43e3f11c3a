"""The menagerie's AutoencoderKL: 64x64 frames to 8x8 latents of four channels."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool


def build_autoencoder() -> AutoencoderKL:
    """An untrained f8 autoencoder in the format of Stable Diffusion's."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, down and across."""
    return images.diff(dim=-2), images.diff(dim=-1)


def train_autoencoder(pool: Pool, work: Path, *, steps: int, batch: int = 8, seed: int = 1) -> AutoencoderKL:
    """Train on frames of varied quality: L1 on pixels and on edges, and a small KL term.

    The latents' spread, measured on the pool, becomes `scaling_factor`, so that the denoiser sees unit variance.
    """
    torch.manual_seed(seed)
    vae = build_autoencoder().to(memory_format=torch.channels_last)

    def losses_of(step: int) -> Losses:
        rng = random.Random(seed * 1_000_003 + step)
        indices = [rng.randrange(len(pool.scenes)) for _ in range(batch)]
        images = torch.from_numpy(pool.images(indices, rng, 0.5)) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            rebuilt = vae.decode(posterior.sample()).sample
        rebuilt = rebuilt.float()
        return {
            "pixels": F.l1_loss(rebuilt, images),
            "edges": torch.stack([F.l1_loss(a, b) for a, b in zip(edges(rebuilt), edges(images), strict=True)]).sum(),
            "kl": 1e-6 * posterior.kl().float().mean(),
        }

    fit("autoencoder", {"vae": vae}, losses_of, steps=steps, lr=1.5e-3, work=work)
    rng = random.Random(seed)
    with torch.no_grad():
        sample = torch.from_numpy(pool.images(range(min(256, len(pool.scenes))), rng, 0.8)) * 2 - 1
        spread = vae.encode(sample).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / spread)
    return vae
