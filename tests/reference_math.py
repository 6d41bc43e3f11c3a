"""InstructVideo's equations (arXiv 2312.12490), written down one by one in float64.

As slow and literal as the paper: loops over clips, steps and frames, guidance as two calls, every frame decoded. It
shares nothing with rayvideo or diffusers, so that agreement means something. Latents are [B, C, F, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Model = Callable[[Tensor, int, Tensor], Tensor]
"""(latents, timestep, prompts [B, L]) -> predicted noise."""


def alpha_bars() -> list[float]:
    """ᾱ_0 … ᾱ_999 of the release: β is linear in its square root from 0.00085 to 0.0120."""
    low, high = math.sqrt(0.00085), math.sqrt(0.0120)
    products, product = [], 1.0
    for t in range(1000):
        product *= 1.0 - (low + (high - low) * t / 999) ** 2
        products.append(product)
    return products


ALPHA_BARS = alpha_bars()


def grid(steps: int, strength: float) -> list[int]:
    """The last int(τ·D) of the D timesteps 1 + k·1000/D, from high to low."""
    whole = [1 + k * (1000 // steps) for k in range(steps)]
    return whole[: int(strength * steps)][::-1]


def corrupted(clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Eq. 5."""
    return math.sqrt(ALPHA_BARS[timestep]) * clean + math.sqrt(1 - ALPHA_BARS[timestep]) * noise


def guided_noise(model: Model, latents: Tensor, timestep: int, empty: Tensor, prompts: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022)."""
    without, with_prompt = model(latents, timestep, empty), model(latents, timestep, prompts)
    return without + scale * (with_prompt - without)


def ddim_step(latents: Tensor, noise: Tensor, now: float, then: float, eta: float = 0.0) -> tuple[Tensor, float]:
    """Mean and σ of DDIM's Eq. 12 and 16 from level ᾱ = `now` to ᾱ = `then`; the paper's Eq. 3 has η = 0."""
    sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    predicted_clean = (latents - math.sqrt(1 - now) * noise) / math.sqrt(now)
    return math.sqrt(then) * predicted_clean + math.sqrt(1 - then - sigma**2) * noise, sigma


def levels(timesteps: Sequence[int]) -> list[tuple[int, float, float]]:
    """(t, ᾱ before, ᾱ after) of each step; the last one lands on ᾱ_0."""
    after = [ALPHA_BARS[t] for t in timesteps[1:]] + [ALPHA_BARS[0]]
    return [(t, ALPHA_BARS[t], then) for t, then in zip(timesteps, after, strict=True)]


def chain(
    model: Model, start: Tensor, timesteps: Sequence[int], empty: Tensor, prompts: Tensor, scale: float, grad_steps: int
) -> Tensor:
    """Eq. 3 and 4: all steps, of which only the last `grad_steps` are differentiated."""
    latents = start
    for number, (t, now, then) in enumerate(levels(timesteps)):
        if number == len(timesteps) - grad_steps:
            latents = latents.detach()
        noise = guided_noise(model, latents, t, empty, prompts, scale)
        latents, _ = ddim_step(latents, noise, now, then)
    return latents if grad_steps else latents.detach()


def segment_of(frame: int, frames: int, segments: int) -> int:
    """Eq. 6: which of S equal segments a frame lies in."""
    return frame * segments // frames


def video_reward(scores: Sequence[Tensor], frames: Sequence[int], length: int, rate: float) -> Tensor:
    """Eq. 7 and 8 of one video: the mean over its judged frames g of e^(−λ|g − F/2|)·r(g)."""
    total = torch.zeros((), dtype=torch.float64)
    for score, g in zip(scores, frames, strict=True):
        total = total + math.exp(-rate * abs(g - length // 2)) * score
    return total / len(scores)


def loss(rewards: Sequence[Tensor]) -> Tensor:
    """Eq. 9 as the release has it: the mean of 1 − R."""
    return torch.stack([1 - reward for reward in rewards]).mean()
