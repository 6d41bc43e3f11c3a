"""The flow model's causal VAE: 17 frames of 64x64 to 5 latent frames of 8x8, sixteen channels.

Of the kind that Wan 2.2 TI2V-5B has. Its shortcuts without parameters make it a coarse copy from the start; the plain
kind did not learn in the time that two CPU cores give.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor, nn

from rayvideo.menagerie.autoencoder import edges
from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool
from rayvideo.precision import CPU, autocast

CHANNELS = 16
PATCH = 2


def build_autoencoder() -> AutoencoderKLWan:
    """An untrained residual AutoencoderKLWan that starts with little memory of earlier frames and little noise."""
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        patch_size=PATCH,
        scale_factor_spatial=8,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    with torch.no_grad():
        for layer in _causal(vae):
            if layer.kernel_size[0] == 3:
                layer.weight[:, :, :2] *= 0.1
                layer.weight[:, :, 2] *= 3**0.5  # what is left of the variance
        nn.init.zeros_(vae.quant_conv.weight[CHANNELS:])
        nn.init.constant_(vae.quant_conv.bias[CHANNELS:], -5.0)
    return vae


def train_autoencoder(
    pool: Pool, work: Path, *, frame_steps: int, short_steps: int, steps: int, more_steps: int
) -> AutoencoderKLWan:
    """Train on single frames, then on clips of 5 frames, then twice on whole ones; each of varied quality.

    A clip's first frame goes through the VAE as an image does, so that frames teach it what things look like at a
    fraction of the cost. The spread of each latent channel, measured on the pool, becomes `latents_mean` and
    `latents_std`.
    """
    torch.manual_seed(11)
    vae = build_autoencoder()
    length = pool.frames.shape[1]

    def losses_of(step: int, frames: int, batch: int) -> Losses:
        clips = sample_clips(pool, random.Random(f"causal-autoencoder-{frames}-{batch}-{step}"), batch, frames)
        with autocast(CPU):
            posterior = vae.encode(clips.transpose(1, 2)).latent_dist
            rebuilt = decode(vae, posterior.sample())
        return _losses(rebuilt.float(), clips) | {
            "kl": 3e-5 * posterior.kl().float().mean() / posterior.mean[0].numel()
        }

    parts = {"vae": vae}
    with _as_images(vae):
        fit("flow-vae-frames", parts, lambda i: losses_of(i, 1, 24), steps=frame_steps, lr=3e-3, work=work)
    stages = (
        ("short", 5, 6, short_steps, 2e-3),
        ("clips", length, 3, steps, 1.5e-3),
        ("more", length, 4, more_steps, 1.5e-3),
    )
    for name, frames, batch, count, lr in stages:
        vae.requires_grad_(True)
        loss = partial(losses_of, frames=frames, batch=batch)
        fit(f"flow-vae-{name}", parts, loss, steps=count, lr=lr, work=work, average=0.995)
    _measure_spread(vae, pool)
    return vae


def sharpen_decoder(vae: AutoencoderKLWan, pool: Pool, work: Path, *, steps: int) -> None:
    """Train the decoder alone on. Latents stay what they are, so that a denoiser may learn them at the same time."""
    length = pool.frames.shape[1]

    def losses_of(step: int) -> Losses:
        clips = sample_clips(pool, random.Random(f"causal-decoder-{step}"), 3, length)
        with autocast(CPU):
            with torch.no_grad():
                latents = vae.encode(clips.transpose(1, 2)).latent_dist.sample()
            rebuilt = decode(vae, latents)
        return _losses(rebuilt.float(), clips)

    parts = {"decoder": vae.decoder, "before": vae.post_quant_conv}
    for part in parts.values():
        part.requires_grad_(True)
    fit("flow-vae-decoder", parts, losses_of, steps=steps, lr=1.5e-3, work=work, average=0.995)


def _losses(rebuilt: Tensor, clips: Tensor) -> Losses:
    down, across = (F.l1_loss(a, b) for a, b in zip(edges(rebuilt), edges(clips), strict=True))
    return {
        "pixels": 4 * F.mse_loss(rebuilt, clips) + 0.5 * F.l1_loss(rebuilt, clips),
        "edges": 0.5 * (down + across),
    }


def sample_clips(pool: Pool, rng: random.Random, count: int, frames: int) -> Tensor:
    """Pieces of clips, half of them degraded, half of them mirrored: [count, frames, 3, H, W] in [-1, 1]."""
    clips = []
    for _ in range(count):
        index, quality = rng.randrange(len(pool.scenes)), rng.getrandbits(32)
        start = rng.randrange(pool.frames.shape[1] - frames + 1)
        clip = pool.of_varied_quality(index, quality, share=0.5, frames=slice(start, start + frames))
        clips.append(clip[:, :, ::-1] if rng.random() < 0.5 else clip)
    return torch.from_numpy(np.stack(clips)).movedim(-1, -3) * 2 - 1


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels [B, F, 3, H, W] of latents [B, C, f, h, w] in the VAE's units, not clamped as `vae.decode` does."""
    cache: list[Any] = [None] * len(_causal(vae.decoder))
    pieces = vae.post_quant_conv(latents).split(1, dim=2)
    chunks = [vae.decoder(p, feat_cache=cache, feat_idx=[0], first_chunk=i == 0) for i, p in enumerate(pieces)]
    return unpatchify(torch.cat(chunks, 2), PATCH).transpose(1, 2)


def _causal(vae: nn.Module) -> list[WanCausalConv3d]:
    return [layer for layer in vae.modules() if isinstance(layer, WanCausalConv3d)]


@contextmanager
def _as_images(vae: AutoencoderKLWan) -> Iterator[None]:
    """Within this context the VAE knows single frames only: what its layers give for one, at a third of the cost."""

    def forward(layer: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        now = layer.weight[:, :, -1]  # the taps before it would see nothing but padding
        padding = (layer._padding[2], layer._padding[0])
        return F.conv2d(x[:, :, 0], now, layer.bias, layer.stride[1:], padding)[:, :, None]

    layers = _causal(vae)
    for layer in layers:
        layer.forward = partial(forward, layer)
    yield
    for layer in layers:
        del layer.forward


@torch.no_grad()
def _measure_spread(vae: AutoencoderKLWan, pool: Pool) -> None:
    rng = random.Random(11)
    means = [
        vae.encode(sample_clips(pool, rng, 1, pool.frames.shape[1]).transpose(1, 2)).latent_dist.mean for _ in range(64)
    ]
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
