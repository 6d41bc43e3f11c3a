"""A rectified flow by diffusers' numbers, by its equations in float64, and by the tables of docs/flow.md."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from rayvideo import editing
from rayvideo.errors import RecipeError, UserError
from rayvideo.schedules import Diffusion, Flow
from tests import reference_flow as literal
from tests.documents import ROOT
from tests.tiny import REFERENCE_SCHEDULE

SHIFTS = (1.0, 3.0, 5.0, 8.0, 12.0)
PAPER = 0.658
"""σ of the noise that the paper's edits start from, 1.92 times as much as clip."""


def euler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


def unipc(**config: Any) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(**{"prediction_type": "flow_prediction", "use_flow_sigmas": True} | config)


def flow(shift: float) -> Flow:
    return Flow(euler(shift=shift))


def wavy(latents: Tensor, timestep: Tensor) -> Tensor:
    return torch.sin(3 * latents + timestep / 100)


class TestGrid:
    @pytest.mark.parametrize("shift", SHIFTS)
    @pytest.mark.parametrize("steps", [7, 20, 50])
    def test_it_is_unipcs(self, shift, steps):
        scheduler = unipc(flow_shift=shift)
        chain = Flow(scheduler).chain(steps)
        scheduler.set_timesteps(steps)
        assert torch.equal(chain.levels[1:], scheduler.sigmas[1:])
        assert chain.levels[0] == 1  # UniPC takes 1e-6 off, for its logarithms
        assert torch.equal(chain.levels, flow(shift).chain(steps).levels)
        exact = torch.tensor(literal.grid(steps, shift))
        torch.testing.assert_close(chain.levels, exact, rtol=1e-6, atol=0)

    def test_timesteps_are_no_whole_numbers(self):
        chain = Flow(unipc(flow_shift=3.0)).chain(20)
        assert torch.equal(chain.timesteps, 1000 * chain.levels[:-1])
        assert chain.timesteps[0] == 1000
        assert chain.timesteps[1].item() == pytest.approx(982.77, abs=0.01)

    def test_diffusers_shifts_the_low_end_twice(self):
        scheduler = euler(shift=3.0)
        scheduler.set_timesteps(20)
        assert scheduler.sigmas[-2].item() == pytest.approx(0.0089, abs=5e-5)
        assert Flow(scheduler).chain(20).levels[-2].item() == pytest.approx(0.1387, abs=5e-5)

    def test_a_part_is_the_end_of_the_whole_and_leaves_the_scheduler_as_it_was(self):
        scheduler = euler(shift=5.0)
        before = scheduler.sigmas.clone()
        part, whole = Flow(scheduler).chain(20, 0.6), Flow(scheduler).chain(20)
        assert torch.equal(part.levels, whole.levels[8:])
        assert torch.equal(part.timesteps, whole.timesteps[8:])
        assert torch.equal(scheduler.sigmas, before)
        with pytest.raises(ValueError, match=r"strength 0\.04 of 20 steps runs 0 steps; .* nearest allowed: 0\.05$"):
            Flow(scheduler).chain(20, 0.04)

    def test_the_shift_is_the_checkpoints_unless_it_is_given(self):
        for scheduler in (euler(shift=5.0), unipc(flow_shift=5.0)):
            assert Flow(scheduler).shift == 5
            assert Flow(scheduler, 2.5).shift == 2.5
            assert Flow(scheduler).shifted(None).shift == 5
            assert torch.equal(Flow(scheduler).shifted(12.0).chain(20).levels, flow(12.0).chain(20).levels)

    @pytest.mark.parametrize("shift", SHIFTS)
    def test_a_start_in_sigma_is_the_first_step_at_that_noise_or_less(self, shift):
        levels = flow(shift).chain(20).levels
        for number, level in enumerate(levels[:-1].tolist()):
            assert flow(shift).steps_from(20, level + 1e-6) == 20 - number
            assert flow(shift).steps_from(20, min(level + 1e-3, 1.0)) == 20 - number
        with pytest.raises(ValueError, match="none of 20 steps starts at that noise or less") as refused:
            flow(shift).steps_from(20, levels[-2].item() - 1e-4)
        assert flow(shift).steps_from(20, float(str(refused.value).split()[-1])) == 1


class TestRefusals:
    @pytest.mark.parametrize("shift", [0.0, -1.0])
    def test_a_shift_that_is_not_above_0(self, shift):
        with pytest.raises(RecipeError, match=rf"^model\.shift {shift}: allowed is any number above 0"):
            Flow(euler(), shift)
        with pytest.raises(RecipeError, match=r"^model\.shift is null, and flow_shift of the model's UniPC\w+ is"):
            Flow(unipc(flow_shift=shift))

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("use_dynamic_shifting", True), ("shift_terminal", 0.1), ("invert_sigmas", True), ("use_karras_sigmas", True)],
    )
    def test_a_grid_of_another_kind(self, setting, value):
        with pytest.raises(UserError, match=f"^the model's FlowMatchEulerDiscreteScheduler has {setting} {value}"):
            Flow(euler(**{setting: value}))

    @pytest.mark.parametrize(
        "scheduler",
        [DDIMScheduler(**REFERENCE_SCHEDULE), unipc(prediction_type="epsilon"), unipc(use_flow_sigmas=False)],
        ids=["DDIM", "predicts epsilon", "no flow sigmas"],
    )
    def test_a_scheduler_of_no_flow(self, scheduler):
        with pytest.raises(UserError, match=f"the model's {type(scheduler).__name__} is no scheduler of a flow"):
            Flow(scheduler)

    def test_a_grid_that_does_not_end_at_0(self):
        with pytest.raises(UserError, match="has final_sigmas_type 'sigma_min', not 'zero'"):
            Flow(unipc(final_sigmas_type="sigma_min"))

    def test_a_diffusion_has_neither_shift_nor_sigma(self):
        schedule = Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE))
        assert schedule.shifted(None) is schedule
        with pytest.raises(RecipeError, match=r"model\.shift 3\.0: this model is a diffusion"):
            schedule.shifted(3.0)
        with pytest.raises(ValueError, match="this model is a diffusion, which has no sigma"):
            schedule.steps_from(20, 0.5)


class TestSteps:
    @pytest.mark.parametrize("shift", SHIFTS)
    @pytest.mark.parametrize("strength", [1.0, 0.6, 0.3])
    @pytest.mark.parametrize("steps", [20, 50])
    def test_corruption_and_steps_are_diffusers_bit_for_bit(self, shift, strength, steps):
        schedule, scheduler = flow(shift), euler()  # the given levels are shifted, and 1 shifts no more
        chain = schedule.chain(steps, strength)
        scheduler.set_timesteps(sigmas=chain.levels[:-1].tolist())
        assert torch.equal(scheduler.sigmas, chain.levels)
        assert torch.equal(scheduler.timesteps, chain.timesteps)
        clean, noise = torch.randn(2, 2, 4, 3, 8, 8).unbind()
        latents = schedule.corrupt(clean, noise, chain.levels[0])
        assert torch.equal(latents, scheduler.scale_noise(clean, chain.timesteps[:1], noise))
        for timestep, (now, then) in zip(chain.timesteps, pairwise(chain.levels), strict=True):
            predicted = wavy(latents, timestep)
            theirs = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            latents, deviation = schedule.step(latents, predicted, now, then)
            assert torch.equal(latents, theirs)
            assert deviation == 0

    def test_the_target_is_what_leads_back_to_the_clip(self):
        clean, noise = torch.randn(2, 3, 4, 2, 8, 8).unbind()
        levels = torch.tensor([0.1, 0.5, 0.9])
        noisy, target = flow(3.0).corrupt(clean, noise, levels), flow(3.0).target(clean, noise, levels)
        torch.testing.assert_close(noisy[1], 0.5 * clean[1] + 0.5 * noise[1])
        for one, level in enumerate(levels):
            torch.testing.assert_close(flow(3.0).clean(noisy[one], target[one], level), clean[one])
            stepped, _ = flow(3.0).step(noisy[one], target[one], level, torch.zeros(()))
            torch.testing.assert_close(stepped, clean[one])

    @pytest.mark.parametrize("shift", SHIFTS)
    def test_random_levels_are_those_that_diffusers_trains_on(self, shift):
        timesteps, levels = flow(shift).random_levels([torch.Generator().manual_seed(n) for n in range(400)])
        alone, _ = flow(shift).random_levels([torch.Generator().manual_seed(7)])
        assert timesteps[7] == alone[0]
        assert torch.equal(timesteps, 1000 * levels)
        grid = euler(shift=shift).sigmas
        nearest = (levels[:, None] - grid).abs().min(1)
        assert nearest.values.max() < 1e-6
        places = nearest.indices.double()  # even before the shift
        assert places.mean().item() == pytest.approx(499.5, abs=4 * 1000 / (12 * 400) ** 0.5)
        assert places.min() < 20
        assert places.max() > 980


class Predictor(nn.Module):
    """Mixes channels and frames, and knows timestep and prompt."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(3, 3, generator=draw, dtype=torch.float64))
        self.speak = nn.Parameter(torch.randn(5, 3, generator=draw, dtype=torch.float64))

    def forward(self, latents: Tensor, timestep: Tensor | float, prompts: Tensor) -> Tensor:
        mixed = torch.einsum("kc,bcfhw->bkfhw", self.mix, latents) + latents.mean(2, keepdim=True)
        spoken = (prompts @ self.speak)[:, :, None, None, None]
        return torch.tanh(mixed + spoken + timestep / 1000)


@pytest.mark.parametrize(("strength", "steps"), [(0.35, 20), (0.6, 20), (1.0, 50)])
@pytest.mark.parametrize("grad_steps", [1, 3])
def test_edits_and_their_gradients_are_those_of_the_equations(strength, steps, grad_steps):
    draw = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 2, 3, 4, 5, 5, generator=draw, dtype=torch.float64).unbind()
    empty, prompts = torch.zeros(2, 5, dtype=torch.float64), torch.randn(2, 5, generator=draw, dtype=torch.float64)
    predictor, results = Predictor(), []
    sigmas = literal.grid(steps, 5.0)[steps - int(strength * steps) :]
    exact = literal.chain(
        predictor, literal.corrupted(clean, noise, sigmas[0]), sigmas, empty, prompts, 3.0, grad_steps
    )
    schedule = flow(5.0)
    chain, both = schedule.chain(steps, strength), torch.cat([empty, prompts])
    predict = editing.guided(lambda pair, timestep: predictor(pair, timestep, both), 3.0)
    grad_on = editing.steps_with_gradient("last", grad_steps, chain.steps)
    ours = editing.run_chain(predict, schedule.corrupt(clean, noise, chain.levels[0]), schedule, chain, grad_on=grad_on)
    for edited in (ours, exact):
        gradients = torch.autograd.grad(edited.square().sum(), list(predictor.parameters()))
        results.append((edited.detach(), *gradients))
    for mine, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


class TestDocument:
    """docs/flow.md."""

    @staticmethod
    def rows(heading: str) -> list[list[str]]:
        """The cells of the table under a line that begins with these cells."""
        lines = (ROOT / "docs/flow.md").read_text(encoding="utf-8").splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith(heading))
        table = lines[start + 2 : lines.index("", start)]
        return [[cell.strip().replace("−", "-") for cell in line.strip("|").split("|")] for line in table]

    @staticmethod
    def factors(schedule: Flow | Diffusion, strength: float = 0.6) -> list[float]:
        """d(end)/d(prediction) of each step, the others held fixed."""
        chain = schedule.chain(20, strength)
        predictions = torch.zeros(chain.steps, dtype=torch.float64, requires_grad=True)
        latents = torch.ones((), dtype=torch.float64)
        for number, (now, then) in enumerate(pairwise(chain.levels.double())):
            latents = schedule.step(latents, predictions[number], now, then)[0]
        return torch.autograd.grad(latents, predictions)[0].tolist()

    def test_what_the_last_steps_carry(self):
        twice = euler(shift=3.0)
        twice.set_timesteps(20)
        every = {
            "the paper's DDIM": self.factors(Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE))),
            "flow, shift 3, shifted twice": twice.sigmas[8:].diff().tolist(),
            **{f"flow, shift {shift:g}": self.factors(flow(shift)) for shift in (3.0, 5.0, 12.0)},
        }
        rows = self.rows("| chain | starts")
        assert [name for name, *_ in rows] == list(every)
        for name, _, last, one, two in rows:
            factors = every[name]
            assert [f"{value:.3f}".replace("0.", ".") for value in factors[-5:]] == last.split()
            for share, steps in ((one, 1), (two, 2)):
                assert share == f"{100 * sum(factors[-steps:]) / sum(factors):.1f} %"
        ddim = every["the paper's DDIM"][-1]
        assert [round(self.factors(flow(shift))[-1] / ddim, 1) for shift in (3.0, 5.0, 12.0)] == [11.4, 17.4, 32.3]
        assert sum(self.factors(flow(3.0))) == pytest.approx(-flow(3.0).chain(20, 0.6).levels[0].item())

    def test_strengths_that_start_no_noisier_than_the_papers(self):
        alpha = Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE)).chain(20, 0.6).levels[0]
        noise, clip = (1 - alpha).sqrt(), alpha.sqrt()
        assert (noise / (noise + clip)).item() == pytest.approx(PAPER, abs=5e-4)
        table = {float(shift): cells for shift, *cells in self.rows("| shift | strength")}
        assert tuple(table) == SHIFTS
        for shift, (strength, starts, usual) in table.items():
            run = flow(shift).steps_from(20, PAPER)
            assert float(strength) == run / 20
            chain = flow(shift).chain(20, float(strength))
            assert chain.levels[0] <= PAPER < flow(shift).chain(20, float(strength) + 0.0501).levels[0]
            assert float(starts) == round(chain.levels[0].item(), 3)
            assert float(usual) == round(flow(shift).chain(20, 0.6).levels[0].item(), 3)


Velocity = Callable[[Tensor, Tensor], Tensor]


def velocity(mean: float, spread: float) -> Velocity:
    """The true velocity at σ of a flow from noise to clips that are N(mean, spread²)."""

    def at(latents: Tensor, sigma: Tensor) -> Tensor:
        distance = latents - (1 - sigma) * mean
        variance = (1 - sigma) ** 2 * spread**2 + sigma**2
        return sigma / variance * distance - (mean + (1 - sigma) * spread**2 / variance * distance)

    return at


def sampled(steps: int, true: Velocity, eta: float, count: int) -> list[Tensor]:
    """Samples [count] after each step of a chain from pure noise."""
    generator = torch.Generator().manual_seed(0)
    schedule = flow(3.0)
    latents, after = torch.randn(count, generator=generator), []
    for now, then in pairwise(schedule.chain(steps).levels):
        mean, sigma = schedule.step(latents, true(latents, now), now, then, eta)
        latents = mean + sigma * torch.randn(count, generator=generator)
        after.append(latents)
    return after


def final_variance(steps: int, true: Velocity, eta: float) -> float:
    """Of infinitely many samples: a step of a Gaussian flow is affine, z' = a·z + b + σ·noise."""
    schedule, variance = flow(3.0), 1.0
    for now, then in pairwise(schedule.chain(steps).levels):
        ends = torch.tensor([0.0, 1.0])
        mean, sigma = schedule.step(ends, true(ends, now), now, then, eta)
        variance = (mean[1] - mean[0]).item() ** 2 * variance + sigma.item() ** 2
    return variance


class TestChance:
    COUNT = 40_000

    def within(self, found: float, expected: float, error: float) -> None:
        assert abs(found - expected) < 4 * error

    @pytest.mark.parametrize("steps", [3, 10, 20])
    @pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
    def test_samples_of_one_clip_have_the_flows_moments_after_every_step(self, steps, eta):
        levels = flow(3.0).chain(steps).levels[1:]
        for sigma, samples in zip(levels.tolist(), sampled(steps, velocity(2.0, 0.0), eta, self.COUNT), strict=True):
            self.within(samples.mean().item(), 2 * (1 - sigma), sigma * self.COUNT**-0.5 + 1e-6)
            self.within(samples.var().item(), sigma**2, sigma**2 * (2 / self.COUNT) ** 0.5 + 1e-10)

    @pytest.mark.parametrize("steps", [300, 600])
    @pytest.mark.parametrize("eta", [0.7, 1.0])
    def test_a_spread_of_clips_has_the_moments_that_eulers_chain_gives_it(self, steps, eta):
        true = velocity(2.0, 1.0)
        ode, sde = (sampled(steps, true, chance, self.COUNT)[-1] for chance in (0.0, eta))
        self.within(sde.mean().item(), ode.mean().item(), (2 / self.COUNT) ** 0.5)
        self.within(sde.var().item(), ode.var().item(), (4 / self.COUNT) ** 0.5)
        assert not torch.allclose(sde, ode, atol=0.5)

    @pytest.mark.parametrize("spread", [0.3, 1.0])
    def test_the_gap_to_eulers_moments_closes_with_the_steps_as_those_to_the_true_ones_do(self, spread):
        true = velocity(2.0, spread)
        gaps = [final_variance(n, true, 0.7) - final_variance(n, true, 0.0) for n in (250, 500, 1000)]
        assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.25)
        assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.25)
        assert final_variance(1000, true, 0.7) == pytest.approx(spread**2, rel=0.02)

    @pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
    @pytest.mark.parametrize("now", [0.9, 0.5, 0.1])
    def test_a_small_step_is_flow_grpos(self, eta, now):
        latents, predicted = torch.randn(2, 500, dtype=torch.float64).unbind()
        then = now - 1e-4
        before, after = torch.tensor([now, then], dtype=torch.float64)
        mean, sigma = flow(3.0).step(latents, predicted, before, after, eta)
        expected, deviation = literal.flow_grpo_step(latents, predicted, now, then, eta)
        torch.testing.assert_close((mean - latents) / 1e-4, (expected - latents) / 1e-4, rtol=1e-2, atol=1e-2)
        assert sigma.item() == pytest.approx(deviation, rel=2e-3)
        assert sigma == flow(3.0).deviation(before, after, eta)

    def test_from_pure_noise_all_noise_is_new_and_to_the_clip_none(self):
        latents, predicted = torch.randn(2, 500).unbind()
        schedule, one, zero = flow(3.0), torch.ones(()), torch.zeros(())
        then = torch.tensor(0.9)
        mean, sigma = schedule.step(latents, predicted, one, then, 0.7)
        assert sigma == then
        torch.testing.assert_close(mean, (1 - then) * (latents - predicted))
        mean, sigma = schedule.step(latents, predicted, then, zero, 0.7)
        assert sigma == 0
        torch.testing.assert_close(mean, latents - then * predicted)
