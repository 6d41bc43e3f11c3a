"""Reward fine-tuning as editing: corrupt a clip, then denoise it part of the way (paper §4.1, Eq. 3-5).

Pure functions on tensors. Latents are [B, C, F, h, w]; what noise and steps are is the `Schedule`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rayvideo.schedules import Chain, Diffusion, Schedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, F, h, w], timestep []) -> what the denoiser predicts, of the same shape."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, or one per clip so that a clip's numbers do not depend on its batch."""


recompute = partial(checkpoint, use_reentrant=False, determinism_check="none")
"""Calls a function now and again in the backward pass, keeping only what it is given. The determinism check compares
shapes; partitioned weights (ZeRO-3) have other ones the second time, and it would refuse them."""


def timesteps(scheduler: Any, num_steps: int, strength: float = 1.0) -> Tensor:
    """The last int(strength·num_steps) timesteps of a diffusers scheduler's chain; see `Diffusion.chain`.

    Raises:
        ValueError: if no step is left to run, or more than the whole chain is asked for.
    """
    return Diffusion(scheduler).chain(num_steps, strength).timesteps


def corrupt(latents: Tensor, noise: Tensor, scheduler: Any, timestep: int | Tensor) -> Tensor:
    """z_t = √ᾱ_t·z_0 + √(1−ᾱ_t)·noise (Eq. 5), with one timestep for the batch or one per clip [B]."""
    schedule = Diffusion(scheduler)
    return schedule.corrupt(latents, noise, schedule.level(timestep))


def normal(shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal fp32 numbers of `shape`, drawn where the generator lives and then moved to `device`."""
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}; give one per clip")
        return torch.cat([normal((1, *shape[1:]), one, device) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=source).to(device)


def offset_noise(latents: Tensor, strength: float, generator: Generators = None) -> Tensor:
    """N(0, 1) + strength·N(0, 1) of shape [B, C, F, 1, 1]: noise that also shifts whole frames (training only)."""
    noise = normal(latents.shape, generator, latents.device)
    shift = normal((*latents.shape[:3], 1, 1), generator, latents.device)
    return (noise + strength * shift).to(latents.dtype)


def guided(predict_pair: Predict, scale: float) -> Predict:
    """Classifier-free guidance as one call on 2B latents: p = p_uncond + scale·(p_cond − p_uncond).

    `predict_pair` gets the latents twice and must condition the first B on the unconditional prompt (diffusers' order).
    """

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = predict_pair(torch.cat([latents, latents]), timestep).to(latents.dtype).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


def denoise(
    predict: Predict,
    latents: Tensor,
    scheduler: Any,
    timesteps: Tensor,
    *,
    grad_steps: int = 1,
    checkpoint: bool = True,
) -> Tensor:
    """`run_chain` over descending `timesteps` of a diffusers scheduler, for a model that predicts noise.

    Raises:
        ValueError: more gradient steps than there are steps.
    """
    schedule = Diffusion(scheduler)
    grad_on = steps_with_gradient("last", grad_steps, len(timesteps))
    return run_chain(predict, latents, schedule, schedule.over(timesteps), grad_on=grad_on, checkpoint=checkpoint)


def steps_with_gradient(
    which: Literal["last", "random"] | Sequence[int],
    count: int,
    steps: int,
    generator: torch.Generator | None = None,
) -> frozenset[int]:
    """Which steps of a chain carry a gradient, counted from 0.

    Args:
        which: "last": the last `count` (K of the paper). "random": as many, drawn without replacement (DRTune, Wu et
            al. 2024). Or the steps themselves, counted from 1; negative ones from the end, -1 is the last.
        steps: Of the chain, D.

    Raises:
        ValueError: more steps than there are, or one that is not there.
    """
    if not isinstance(which, str):
        if bad := [number for number in which if not 1 <= abs(number) <= steps]:
            raise ValueError(f"step {bad[0]} of a chain of {steps} steps; allowed: 1 to {steps}, or -{steps} to -1")
        return frozenset(number - 1 if number > 0 else steps + number for number in which)
    if not 0 <= count <= steps:
        raise ValueError(f"grad_steps {count} of a chain of {steps} steps; allowed: 0 to {steps}")
    if which == "random":
        return frozenset(torch.randperm(steps, generator=generator)[:count].tolist())
    return frozenset(range(steps - count, steps))


def run_chain(
    predict: Predict,
    latents: Tensor,
    schedule: Schedule,
    chain: Chain,
    *,
    grad_on: Collection[int] = (),
    detach_input: bool = False,
    checkpoint: bool = True,
) -> Tensor:
    """Denoise latents along a chain (Eq. 3, 4); the predictions of the steps `grad_on` alone carry a gradient.

    Up to the first of them there is no graph at all. From there on the way through the steps themselves, which are
    linear, is differentiated; the predictions of other steps count as constants.

    Args:
        grad_on: Steps counted from 0.
        detach_input: Stop the gradient at the denoiser's input, so that a step is not held responsible for what later
            predictions make of it (DRTune's stop-gradient).
        checkpoint: Each gradient step keeps its input only, and is run again in the backward pass.
    """
    first = min(grad_on, default=chain.steps)

    def step(latents: Tensor, index: int) -> Tensor:
        seen = latents.detach() if detach_input else latents
        with nullcontext() if index in grad_on else torch.no_grad():
            predicted = predict(seen, chain.timesteps[index].to(latents.device)).to(latents.dtype)
        return schedule.step(latents, predicted, chain.levels[index], chain.levels[index + 1])[0]

    with torch.no_grad():
        for index in range(first):
            latents = step(latents, index)
    for index in range(first, chain.steps):
        latents = recompute(step, latents, index) if checkpoint and index in grad_on else step(latents, index)
    return latents
