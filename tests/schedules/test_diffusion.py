"""DDIM by diffusers' numbers, for models that predict noise and for those that predict v."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rayvideo.schedules import Diffusion
from tests.tiny import REFERENCE_SCHEDULE

Predicts = Literal["epsilon", "v_prediction"]
KINDS: tuple[Predicts, ...] = ("epsilon", "v_prediction")


def scheduler_for(predicts: Predicts, **changes: object) -> DDIMScheduler:
    return DDIMScheduler(**REFERENCE_SCHEDULE | {"prediction_type": predicts} | changes)


def wavy(latents: Tensor, timestep: Tensor) -> Tensor:
    return torch.sin(3 * latents + timestep / 100)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_steps_are_diffusers(predicts, eta):
    scheduler = scheduler_for(predicts)
    schedule, latents = Diffusion(scheduler, predicts), torch.randn(2, 4, 3, 8, 8)
    chain = schedule.chain(20, 0.6)
    scheduler.set_timesteps(20)
    for number, timestep in enumerate(chain.timesteps):
        noise = torch.randn_like(latents)
        now, then = chain.levels[number : number + 2]
        mean, sigma = schedule.step(latents, wavy(latents, timestep), now, then, eta)
        assert sigma == schedule.deviation(now, then, eta)
        stepped = scheduler.step(wavy(latents, timestep), timestep, latents, eta=eta, variance_noise=noise)
        torch.testing.assert_close(mean + sigma * noise, stepped.prev_sample, atol=1e-5, rtol=1e-5)
        clean = schedule.clean(latents, wavy(latents, timestep), now)
        torch.testing.assert_close(clean, stepped.pred_original_sample, atol=1e-4, rtol=1e-5)
        latents = stepped.prev_sample


@pytest.mark.parametrize("predicts", KINDS)
def test_the_target_is_what_leads_back_to_the_clip(predicts):
    schedule = Diffusion(scheduler_for(predicts), predicts)
    clean, noise = torch.randn(2, 3, 4, 2, 8, 8).unbind()
    timesteps, levels = schedule.random_levels([torch.Generator().manual_seed(n) for n in range(3)])
    noisy, target = schedule.corrupt(clean, noise, levels), schedule.target(clean, noise, levels)
    torch.testing.assert_close(noisy, schedule.scheduler.add_noise(clean, noise, timesteps))
    if predicts == "v_prediction":
        torch.testing.assert_close(target, schedule.scheduler.get_velocity(clean, noise, timesteps))
    for one, level in enumerate(levels):
        torch.testing.assert_close(schedule.clean(noisy[one], target[one], level), clean[one], atol=1e-4, rtol=1e-3)


def test_random_levels_are_each_clips_own_and_cover_the_schedule():
    schedule = Diffusion(scheduler_for("epsilon"))
    timesteps, levels = schedule.random_levels([torch.Generator().manual_seed(n) for n in range(200)])
    alone, _ = schedule.random_levels([torch.Generator().manual_seed(7)])
    assert timesteps[7] == alone[0]
    assert timesteps.min() < 50
    assert timesteps.max() > 950
    assert torch.equal(levels, schedule.scheduler.alphas_cumprod[timesteps])


def test_v_takes_a_schedule_that_ends_in_pure_noise():
    schedule = Diffusion(
        scheduler_for("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), KINDS[1]
    )
    chain = schedule.chain(5)
    assert chain.timesteps[0] == 999
    assert chain.levels[0] < 1e-6
    noise = torch.randn(1, 4, 2, 4, 4)
    mean, _ = schedule.step(noise, wavy(noise, chain.timesteps[0]), *chain.levels[:2])
    assert mean.isfinite().all()


def test_the_last_steps_of_a_chain_end_where_it_does():
    chain = Diffusion(scheduler_for("epsilon")).chain(20, 0.6)
    last = chain.last(2)
    assert (chain.steps, last.steps) == (12, 2)
    assert torch.equal(last.timesteps, chain.timesteps[10:])
    assert torch.equal(last.levels, chain.levels[10:])


def test_a_chain_leaves_the_scheduler_as_it_was():
    scheduler = scheduler_for("epsilon")
    before = scheduler.timesteps.clone()
    Diffusion(scheduler).chain(20, 0.6)
    assert scheduler.num_inference_steps is None
    assert torch.equal(scheduler.timesteps, before)
