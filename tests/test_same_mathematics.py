"""rayvideo's functions against the literal equations of tests/reference_math.py, in outputs and in gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from rayvideo import editing
from rayvideo.rewards import clamp_pixels
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from rayvideo.schedules import Diffusion
from rayvideo.training.pathwise import reward_loss
from tests import reference_math as paper
from tests.tiny import REFERENCE_SCHEDULE

CLIPS, CHANNELS, FRAMES, SIDE, SEGMENTS, GUIDANCE = 2, 2, 8, 4, 4, 3.0
STRENGTHS = [round(0.1 * tenth, 1) for tenth in range(1, 10)]
CASES = [
    (strength, steps, grad_steps or int(strength * steps))
    for strength in STRENGTHS
    for steps in (20, 50)
    for grad_steps in (1, 2, 3, None)
    if grad_steps is None or grad_steps < int(strength * steps)
]


class Predictor(nn.Module):
    """A denoiser of a few weights that looks at space, time, timestep and prompt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1)
        self.prompt = nn.Linear(3, CHANNELS)
        self.double()

    def forward(self, latents: Tensor, timestep: int | Tensor, prompts: Tensor) -> Tensor:
        shift = self.prompt(prompts)[:, :, None, None, None]
        return 0.5 * latents + torch.tanh(self.mix(latents) + shift + torch.as_tensor(timestep) / 1000)


@pytest.fixture(scope="module")
def schedule() -> Any:
    """The release's schedule; with ᾱ in float64, so that rounding does not hide a difference."""
    schedule = DDIMScheduler(**REFERENCE_SCHEDULE)
    exact = torch.tensor(paper.ALPHA_BARS, dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod.double(), exact, rtol=0, atol=3e-6)
    schedule.alphas_cumprod, schedule.final_alpha_cumprod = exact, exact[0]
    return schedule


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLEAN = draw(CLIPS, CHANNELS, FRAMES, SIDE, SIDE, seed=1)
NOISE = draw(CLIPS, CHANNELS, FRAMES, SIDE, SIDE, seed=2)
EMPTY, PROMPTS = torch.zeros(CLIPS, 3, dtype=torch.float64), draw(CLIPS, 3, seed=3)
COLOURS = draw(3, CHANNELS, seed=4)
TASTE = draw(3, SIDE, SIDE, seed=5)


def decode(latents: Tensor) -> Tensor:
    """[B, F, 3, h, w]; some pixels lie outside [0, 1]."""
    return torch.einsum("kc,bcfhw->bfkhw", COLOURS, latents) / 4 + 0.5


def score(frame: Tensor) -> Tensor:
    """A judge of one frame [3, h, w]."""
    return torch.sin((TASTE * frame).sum())


def by_rayvideo(
    schedule: Any, predictor: Predictor, case: tuple[float, int, int], indices: Tensor, clamp: Any
) -> tuple[Tensor, Tensor]:
    strength, steps, grad_steps = case
    grid = editing.timesteps(schedule, steps, strength)
    noisy = editing.corrupt(CLEAN, NOISE, schedule, grid[0])
    both = torch.cat([EMPTY, PROMPTS])
    predict = editing.guided(lambda pair, timestep: predictor(pair, timestep, both), GUIDANCE)
    edited = editing.denoise(predict, noisy, schedule, grid, grad_steps=grad_steps)
    chosen = clamp_pixels(decode(edited)[torch.arange(CLIPS)[:, None], indices], clamp)
    scores = torch.stack([score(frame) for frame in chosen.flatten(0, 1)]).view(indices.shape)
    return edited, reward_loss(video_reward(scores, attenuation(indices, FRAMES, 0.5)))


def by_the_paper(
    predictor: Predictor, case: tuple[float, int, int], indices: Tensor, clamp: Any
) -> tuple[Tensor, Tensor]:
    strength, steps, grad_steps = case
    grid = paper.grid(steps, strength)
    noisy = paper.corrupted(CLEAN, NOISE, grid[0])
    edited = paper.chain(predictor, noisy, grid, EMPTY, PROMPTS, GUIDANCE, grad_steps)
    rewards = []
    for clip, frames in zip(decode(edited), indices.tolist(), strict=True):
        shown = [clip[g] for g in frames]
        # straight-through: the value of the clamp with the gradient of the identity
        clamped = [f.clamp(0, 1) if clamp == "hard" else f + (f.clamp(0, 1) - f).detach() for f in shown]
        rewards.append(paper.video_reward([score(frame) for frame in clamped], frames, FRAMES, 0.5))
    return edited, paper.loss(rewards)


@pytest.mark.parametrize("case", CASES, ids=[f"tau={s}-D={d}-K={k}" for s, d, k in CASES])
@pytest.mark.parametrize("clamp", ["straight_through", "hard"])
def test_edited_clips_loss_and_gradients_are_those_of_the_equations(schedule, case, clamp):
    predictor = Predictor()
    indices = sample_segments(CLIPS, FRAMES, SEGMENTS, generator=torch.Generator().manual_seed(7))
    results = []
    for edited, loss in (
        by_rayvideo(schedule, predictor, case, indices, clamp),
        by_the_paper(predictor, case, indices, clamp),
    ):
        results.append((edited.detach(), loss.detach(), *torch.autograd.grad(loss, list(predictor.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_the_cases_see_clamped_pixels():
    share = ((decode(CLEAN) < 0) | (decode(CLEAN) > 1)).double().mean()
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("steps", [20, 50])
def test_the_grid_is_the_papers(schedule, strength, steps):
    assert editing.timesteps(schedule, steps, strength).tolist() == paper.grid(steps, strength)


def test_a_chain_in_fp32_with_the_schedule_as_published_stays_close():
    predictor = Predictor()
    grid = paper.grid(20, 0.6)
    exact = paper.chain(predictor, paper.corrupted(CLEAN, NOISE, grid[0]), grid, EMPTY, PROMPTS, GUIDANCE, len(grid))
    published, single, both = DDIMScheduler(**REFERENCE_SCHEDULE), predictor.float(), torch.cat([EMPTY, PROMPTS])
    ours = editing.denoise(
        editing.guided(lambda pair, timestep: single(pair, timestep, both.float()), GUIDANCE),
        editing.corrupt(CLEAN.float(), NOISE.float(), published, grid[0]),
        published,
        editing.timesteps(published, 20, 0.6),
        grad_steps=0,
    )
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_random_step_is_ddims(schedule, eta):
    grid = editing.timesteps(schedule, 20)
    ours = Diffusion(schedule)
    levels = ours.over(grid).levels
    for number, (_, now, then) in enumerate(paper.levels(paper.grid(20, 1.0))):
        mean, sigma = ours.step(CLEAN, NOISE, levels[number], levels[number + 1], eta)
        expected_mean, expected_sigma = paper.ddim_step(CLEAN, NOISE, now, then, eta)
        torch.testing.assert_close(mean, expected_mean)
        assert sigma.item() == pytest.approx(expected_sigma)


def test_each_judged_frame_is_of_its_segment():
    indices = sample_segments(50, 16, 4, generator=torch.Generator().manual_seed(0))
    assert [[paper.segment_of(g, 16, 4) for g in clip] for clip in indices.tolist()] == [[0, 1, 2, 3]] * 50


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0, 2.0])
def test_rewards_and_their_gradients_are_those_of_the_equations(rate):
    scores = draw(3, 4, seed=8).requires_grad_()
    indices = sample_segments(3, 16, 4, generator=torch.Generator().manual_seed(1))
    ours = reward_loss(video_reward(scores, attenuation(indices, 16, rate)))
    theirs = paper.loss(
        [paper.video_reward(list(s), g, 16, rate) for s, g in zip(scores, indices.tolist(), strict=True)]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, scores), torch.autograd.grad(theirs, scores), rtol=1e-6, atol=0
    )
