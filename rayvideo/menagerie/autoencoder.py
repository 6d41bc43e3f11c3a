"""The menagerie's AutoencoderKL: 64x64 frames to 8x8 latents of twelve channels.

Four channels, as large models have, need far more training than two CPU cores give: shapes stay blots.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool
from rayvideo.precision import CPU, autocast

CHANNELS = 12
LATENT_STD = 0.4
"""Spread of the latents that the denoiser sees. Sixteen frames show the same things, so their noise averages out: at
1.0 a clip is still legible at the schedule's last step, and the model would neither learn to start from noise nor need
the caption."""


def build_autoencoder() -> AutoencoderKL:
    """An untrained f8 autoencoder in the format of Stable Diffusion's.

    Norms over all channels together: with a few channels a group, they would erase a clip's colour and contrast.
    """
    return AutoencoderKL(
        block_out_channels=(8, 24, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=64,
    )


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, down and across."""
    return images.diff(dim=-2), images.diff(dim=-1)


def train_autoencoder(pool: Pool, work: Path, *, crop_steps: int, steps: int, seed: int = 1) -> AutoencoderKL:
    """Train on frames of varied quality, first on quarter-size crops (many more of them a second), then on whole ones.

    Squared error and L1 on pixels, L1 on edges, and a KL term that only keeps the latents' scale in bounds. Their
    spread, measured on the pool, gives `scaling_factor`, so that the denoiser sees LATENT_STD.
    """
    torch.manual_seed(seed)
    vae = build_autoencoder().to(memory_format=torch.channels_last)

    def losses_of(step: int, crops: bool) -> Losses:
        rng = random.Random(f"autoencoder-{seed}-{crops}-{step}")
        pixels = pool.images([rng.randrange(len(pool.scenes)) for _ in range(8)], rng, 0.5)
        if crops:
            corners = [(i % 8, rng.randrange(33), rng.randrange(33)) for i in range(24)]
            pixels = np.stack([pixels[i, :, y : y + 32, x : x + 32] for i, y, x in corners])
        images = (torch.from_numpy(pixels) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with autocast(CPU):
            posterior = vae.encode(images).latent_dist
            rebuilt = vae.decode(posterior.sample()).sample
        rebuilt = rebuilt.float()
        return {
            "pixels": 4 * F.mse_loss(rebuilt, images) + 0.5 * F.l1_loss(rebuilt, images),
            "edges": torch.stack([F.l1_loss(a, b) for a, b in zip(edges(rebuilt), edges(images), strict=True)]).sum(),
            "kl": 2e-8 * posterior.kl().float().mean(),
        }

    fit("autoencoder-crops", {"vae": vae}, lambda i: losses_of(i, True), steps=crop_steps, lr=3e-3, work=work)
    vae.requires_grad_(True)
    fit("autoencoder", {"vae": vae}, lambda i: losses_of(i, False), steps=steps, lr=1.5e-3, work=work, average=0.995)
    rng = random.Random(seed)
    with torch.no_grad():
        sample = torch.from_numpy(pool.images(range(min(256, len(pool.scenes))), rng, 0.8)) * 2 - 1
        spread = vae.encode(sample).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=LATENT_STD / spread)
    return vae
