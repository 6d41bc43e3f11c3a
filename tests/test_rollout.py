"""Steps without a gradient: the second-order solver by diffusers' own, fewer steps, guidance within an interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rayvideo import editing
from rayvideo.rollout import guided_within, roll_out
from rayvideo.schedules import Chain, Diffusion, Flow, Schedule
from tests.tiny import REFERENCE_SCHEDULE

DIFFUSION = Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE))
VELOCITY = Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE), "v_prediction")
FLOW = Flow(FlowMatchEulerDiscreteScheduler(shift=3.0))
SHAPE = (2, 3, 4, 5, 5)


def wavy(latents: Tensor, timestep: Tensor) -> Tensor:
    return torch.sin(3 * latents + timestep / 100)


def start(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def diffusers_solver(chain: Chain, schedule: Schedule, **config: Any) -> DPMSolverMultistepScheduler:
    """diffusers' solver, told to go over this chain's very levels."""
    solver = DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++", **config)
    solver.set_timesteps(chain.steps)
    signal, noise = schedule.mixture(chain.levels)
    flow = bool(config.get("use_flow_sigmas"))
    solver.sigmas = noise if flow else noise / signal
    solver.timesteps = chain.timesteps
    solver.num_inference_steps = chain.steps
    return solver


@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        (DIFFUSION, {"prediction_type": "epsilon"}),
        (VELOCITY, {"prediction_type": "v_prediction"}),
        (FLOW, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ],
    ids=["epsilon", "v", "flow"],
)
@pytest.mark.parametrize("steps", [1, 2, 3, 11])
def test_the_second_order_solver_is_diffusers(schedule, config, steps):
    chain = schedule.chain(20, 0.6).first(11).thinned(steps)
    solver = diffusers_solver(chain, schedule, lower_order_final=False, final_sigmas_type="sigma_min", **config)
    theirs = start()
    for index in range(chain.steps):
        predicted = wavy(theirs, chain.timesteps[index])
        solver._step_index = index
        theirs = solver.step(predicted, chain.timesteps[index], theirs).prev_sample
    ours = roll_out(lambda level: wavy, start(), schedule, chain, "dpmsolver++")
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("schedule", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_without_options_it_is_the_chain(schedule):
    chain = schedule.chain(20, 0.6)
    ours = roll_out(lambda level: wavy, start(), schedule, chain)
    assert torch.equal(ours, editing.run_chain(wavy, start(), schedule, chain))


@pytest.mark.parametrize("schedule", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_the_second_order_solver_needs_fewer_steps_for_the_same_clip(schedule):
    """Of a flow or diffusion whose clean clips are Gaussian the exact way is known."""
    spread = 0.5  # of clean clips around 0

    def predict_at(level: Tensor) -> editing.Predict:
        signal, noise = schedule.mixture(level)
        share = signal * spread**2 / (signal**2 * spread**2 + noise**2)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            clean = share * latents
            implied = (latents - signal * clean) / noise
            return schedule.target(clean, implied, level)

        return predict

    chain = schedule.chain(400, 0.6)
    chain = chain.first(chain.steps - 20)
    exact = roll_out(predict_at, start(), schedule, chain)
    errors = {
        solver: (roll_out(predict_at, start(), schedule, chain, solver, 5) - exact).abs().max().item()
        for solver in ("ddim", "dpmsolver++")
    }
    assert errors["dpmsolver++"] < errors["ddim"] / 3


def test_it_ends_where_no_noise_is_left_and_starts_where_nothing_else_is():
    chain = FLOW.chain(6)
    assert chain.levels[0] == 1
    assert chain.levels[-1] == 0
    out = roll_out(lambda level: wavy, start(), FLOW, chain, "dpmsolver++")
    assert out.isfinite().all()
    last = FLOW.clean(
        roll_out(lambda level: wavy, start(), FLOW, chain.first(5), "dpmsolver++"),
        wavy(roll_out(lambda level: wavy, start(), FLOW, chain.first(5), "dpmsolver++"), chain.timesteps[5]),
        chain.levels[5],
    )
    torch.testing.assert_close(out, last)  # a step to the end is of first order: the clean estimate


def test_fewer_steps_keep_to_the_chains_levels_and_ends():
    chain = DIFFUSION.chain(20, 0.6)
    thin = chain.thinned(4)
    assert thin.timesteps.tolist() == [551, 401, 251, 101]
    assert thin.levels[0] == chain.levels[0]
    assert thin.levels[-1] == chain.levels[-1]
    assert torch.equal(chain.thinned(12).levels, chain.levels)
    assert chain.first(0).thinned(0).steps == 0
    for wrong in (0, 13):
        with pytest.raises(ValueError, match=f"{wrong} steps in place of 12; allowed: 1 to 12"):
            chain.thinned(wrong)


def test_the_first_and_the_last_steps_make_the_whole():
    chain = FLOW.chain(7)
    for cut in range(8):
        front, back = chain.first(cut), chain.last(7 - cut)
        assert torch.equal(torch.cat([front.timesteps, back.timesteps]), chain.timesteps)
        assert torch.equal(torch.cat([front.levels, back.levels[1:]]), chain.levels)


@pytest.mark.parametrize("schedule", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_guidance_within_an_interval_asks_for_the_caption_alone_elsewhere(schedule):
    asked = []

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        asked.append("guided")
        return latents

    def alone(latents: Tensor, timestep: Tensor) -> Tensor:
        asked.append("alone")
        return latents

    chain = schedule.chain(10)
    roll_out(guided_within(guided, alone, schedule, (0.3, 0.8)), start(), schedule, chain)
    noise = schedule.mixture(chain.levels[:-1])[1]
    assert asked == ["guided" if 0.3 <= sigma <= 0.8 else "alone" for sigma in noise.tolist()]
    assert {"guided", "alone"} == set(asked)
    asked.clear()
    roll_out(guided_within(guided, alone, schedule, None), start(), schedule, chain)
    assert set(asked) == {"guided"}


def test_there_is_no_gradient():
    weight = torch.ones((), requires_grad=True)
    out = roll_out(lambda level: lambda z, t: weight * z, start(), FLOW, FLOW.chain(4), "dpmsolver++")
    assert not out.requires_grad
