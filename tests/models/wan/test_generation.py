"""Clips from captions are those of diffusers' WanPipeline: the same noise, Euler's steps on the same levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from rayvideo.evaluation.generate import generate_clips
from rayvideo.models import load_model
from rayvideo.schedules import Chain
from rayvideo.seeding import generator_for
from tests import tiny_wan
from tests.models.wan.conftest import Folder, Pipeline

CAPTIONS, SEEDS, STEPS, FRAMES, SIZE = ["a red cat", "the moon at night"], [3, 4], 6, 9, 32


class OnceShifted(FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler on given levels, whatever number of steps the pipeline asks for."""

    chain: Chain

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(sigmas=self.chain.levels[:-1].tolist(), device="cpu")


def their_clips(pipeline: WanPipeline, chain: Chain, noise: Tensor, guidance: float) -> Tensor:
    scheduler = OnceShifted(shift=1.0)
    scheduler.chain = chain
    whole = WanPipeline(**pipeline.components | {"scheduler": scheduler}, **settings(pipeline))
    whole.set_progress_bar_config(disable=True)
    made: Tensor = whole(
        CAPTIONS,
        negative_prompt="",
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        num_inference_steps=chain.steps,
        guidance_scale=guidance,
        latents=noise,
        output_type="pt",
    ).frames
    torch.testing.assert_close(scheduler.timesteps, chain.timesteps)
    torch.testing.assert_close(scheduler.sigmas, chain.levels)
    return made


def settings(pipeline: WanPipeline) -> dict[str, Any]:
    return {key: pipeline.config[key] for key in ("boundary_ratio", "expand_timesteps")}


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["2.1", "5B", "A14B"])
def test_generated_clips_equal_the_pipelines(
    wan: Folder, theirs: Pipeline, kind: tiny_wan.Kind, guidance: float
) -> None:
    model = load_model(wan(kind))
    shape, chain = model.latent_shape(FRAMES, SIZE, SIZE), model.schedule.chain(STEPS)
    assert (chain.timesteps >= 875).any()
    assert (chain.timesteps < 875).any()
    own = [generator_for(seed, "generate", caption) for caption, seed in zip(CAPTIONS, SEEDS, strict=True)]
    noise = torch.cat([torch.randn(1, *shape, generator=one) for one in own])
    wanted = their_clips(theirs(kind), chain, noise, guidance)
    found = generate_clips(
        model, CAPTIONS, SEEDS, steps=STEPS, guidance=guidance, frames=FRAMES, height=SIZE, width=SIZE
    )
    assert found.shape == (2, FRAMES, 3, SIZE, SIZE)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (found - found[:1]).abs().max() > 1e-3, "the clips must differ for this to say much"
