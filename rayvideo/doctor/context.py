"""How far a judged frame's gradient reaches back through a causal VAE, and what `model.vae_context` keeps of it."""

from __future__ import annotations

import torch
from torch import Tensor

from rayvideo.data.table import LatentTable
from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.seeding import generator_for

LOOKED_BACK = 4
"""Latent frames before a judged one that are looked at: what lies further back hardly counts, and takes memory."""
SIDE = 32
"""Of latents, at most: how time is mixed is a property of the weights, not of the picture's size."""


def examine(recipe: Recipe, table: LatentTable, model: VideoModel) -> Finding:
    """Of one clip's last frame, the share of the gradient's energy that each context keeps.

    Within a window the gradient is exact and before it nothing, so that a share is also the square of the cosine
    between the gradient of a window and the whole one.
    """
    name = "gradient through the VAE"
    clip = table.rows([0])
    latents = model.posterior(clip.mean.to(model.device), clip.logvar.to(model.device)).mode()
    if latents.shape[2] == recipe.data.frames:
        return Finding(name, None, "the decoder knows no time: a frame's gradient is its own latent frame's")
    energy = by_latent_frame(model, latents[..., :SIDE, :SIDE], recipe.data.frames - 1, recipe.seed)
    kept = shares(energy)
    chosen = recipe.model.vae_context
    told = ", ".join(f"{share:.0%} with {context}" for context, share in enumerate(kept))
    measured = f"of what {len(kept) - 1} latent frames before carry, vae_context keeps {told}"
    enough = next(context for context, share in enumerate(kept) if share >= thresholds.KEPT)
    return Finding(
        name,
        chosen is None or chosen >= enough,
        measured,
        f"set model.vae_context to {enough}, or to null for all of it, if memory allows",
    )


def by_latent_frame(model: VideoModel, latents: Tensor, frame: int, seed: int) -> Tensor:
    """Energy [f] of the gradient of one frame of latents [1, C, f, h, w], as a share of it all, mean of two directions.

    The directions are noise over all pixels, which stands for detail, and the frame's brightness.
    """
    leaf = latents.detach().requires_grad_()
    pixels = model.decode_frames(leaf, torch.tensor([[frame]]), context=LOOKED_BACK)
    noise = torch.randn(pixels.shape, generator=generator_for(seed, "doctor", "context")).to(pixels)
    found = []
    for direction in (noise, torch.ones_like(pixels)):
        (slope,) = torch.autograd.grad(pixels, leaf, direction, retain_graph=True)
        energy = slope.double().square().sum((0, 1, 3, 4))
        found.append(energy / energy.sum())
    return torch.stack(found).mean(0).cpu()


def shares(energy: Tensor) -> list[float]:
    """Share of the energy [f] in a frame's own latent frame, the last with any, and with 1, 2, … before it."""
    own = int(energy.nonzero().max())
    window = energy[max(0, own - LOOKED_BACK) : own + 1].flip(0)
    return [min(1.0, share) for share in window.cumsum(0).tolist()]
