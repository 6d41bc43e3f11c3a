"""A rectified flow's equations, written down one by one in float64, as tests.reference_math does for the paper's.

It shares nothing with rayvideo or diffusers. Latents are [B, C, F, h, w], σ runs from 1, noise, to 0, the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Model = Callable[[Tensor, float, Tensor], Tensor]
"""(latents, timestep, prompts [B, L]) -> predicted velocity."""


def grid(steps: int, shift: float) -> list[float]:
    """σ before each of D steps and after the last: even from 1 to 1/1000, which is left out, shifted once; then 0."""
    even = [1 - k * (1 - 1 / 1000) / steps for k in range(steps)]
    return [shift * u / (1 + (shift - 1) * u) for u in even] + [0.0]


def corrupted(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Eq. 5 on a flow's path."""
    return (1 - sigma) * clean + sigma * noise


def guided_velocity(
    model: Model, latents: Tensor, sigma: float, empty: Tensor, prompts: Tensor, scale: float
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022), of a denoiser that is told 1000·σ."""
    without, with_prompt = model(latents, 1000 * sigma, empty), model(latents, 1000 * sigma, prompts)
    return without + scale * (with_prompt - without)


def chain(
    model: Model, start: Tensor, sigmas: Sequence[float], empty: Tensor, prompts: Tensor, scale: float, grad_steps: int
) -> Tensor:
    """Eq. 3 and 4 with Euler's steps, of which only the last `grad_steps` are differentiated."""
    latents = start
    for number in range(len(sigmas) - 1):
        if number == len(sigmas) - 1 - grad_steps:
            latents = latents.detach()
        velocity = guided_velocity(model, latents, sigmas[number], empty, prompts, scale)
        latents = latents + (sigmas[number + 1] - sigmas[number]) * velocity
    return latents if grad_steps else latents.detach()


def flow_grpo_step(latents: Tensor, velocity: Tensor, now: float, then: float, eta: float) -> tuple[Tensor, float]:
    """Mean and σ of the Euler-Maruyama step of Liu et al. 2025 (arXiv 2505.05470), with their a = η."""
    strength = eta * math.sqrt(now / (1 - now))
    drift = velocity + strength**2 / (2 * now) * (latents + (1 - now) * velocity)
    return latents + drift * (then - now), strength * math.sqrt(now - then)
