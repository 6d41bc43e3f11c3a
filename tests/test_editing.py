import pytest
import torch
from diffusers import DDIMScheduler

from rayvideo import editing
from rayvideo.schedules import Diffusion
from tests.tiny import REFERENCE_SCHEDULE


@pytest.fixture
def scheduler():
    return DDIMScheduler(**REFERENCE_SCHEDULE)


@pytest.mark.parametrize(
    ("strength", "start"), [(0.1, 51), (0.3, 251), (0.5, 451), (0.6, 551), (0.7, 651), (0.9, 851), (1.0, 951)]
)
def test_strength_sets_the_start_of_the_partial_grid(scheduler, strength, start):
    assert editing.timesteps(scheduler, 20, strength).tolist() == list(range(start, 0, -50))


def test_whole_grid_of_fifty_steps(scheduler):
    assert editing.timesteps(scheduler, 50).tolist() == list(range(981, 0, -20))


def test_timesteps_leave_the_schedule_as_it_was(scheduler):
    before = scheduler.timesteps.clone()
    editing.timesteps(scheduler, 20, 0.6)
    assert scheduler.num_inference_steps is None
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize("strength", [0.04, 1.1])
def test_a_chain_without_steps_or_longer_than_whole_is_refused(scheduler, strength):
    with pytest.raises(ValueError, match=f"strength {strength} of 20 steps"):
        editing.timesteps(scheduler, 20, strength)


@pytest.mark.parametrize(("timestep", "alpha"), [(1, 0.998296), (51, 0.950524), (551, 0.212783), (601, 0.159816)])
def test_corruption_follows_the_reference_schedule(scheduler, timestep, alpha):
    clean, noise = torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    assert editing.corrupt(clean, 0 * noise, scheduler, timestep).item() ** 2 == pytest.approx(alpha, abs=1e-6)
    assert editing.corrupt(0 * clean, noise, scheduler, timestep).item() ** 2 == pytest.approx(1 - alpha, abs=1e-6)


def test_corruption_takes_one_timestep_per_clip_and_equals_diffusers(scheduler):
    latents, noise = torch.randn(2, 2, 4, 3, 8, 8)
    steps = torch.tensor([51, 551])
    torch.testing.assert_close(
        editing.corrupt(latents, noise, scheduler, steps), scheduler.add_noise(latents, noise, steps)
    )


def wavy(latents, timestep):
    """A prediction that depends on latents and timestep."""
    return torch.sin(3 * latents + timestep / 100)


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.6), (50, 1.0), (12, 0.5), (7, 1.0)])
def test_the_chain_equals_diffusers_scheduler(scheduler, steps, strength):
    start = torch.randn(2, 4, 3, 8, 8)
    grid = editing.timesteps(scheduler, steps, strength)
    ours = editing.denoise(wavy, start, scheduler, grid, grad_steps=0)
    scheduler.set_timesteps(steps)
    theirs = start
    for t in scheduler.timesteps[-len(grid) :]:
        theirs = scheduler.step(wavy(theirs, t), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("to_one", "expected"), [(False, -0.01214), (True, -0.01214 * 3.4)])
def test_the_last_step_passes_the_known_share_of_the_gradient(to_one, expected):
    scheduler = DDIMScheduler(**REFERENCE_SCHEDULE | {"set_alpha_to_one": to_one})
    noise = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    grid = editing.timesteps(scheduler, 20, 0.6)
    editing.denoise(lambda latents, t: noise, torch.ones_like(noise), scheduler, grid).sum().backward()
    assert noise.grad is not None
    assert noise.grad.item() == pytest.approx(expected, rel=5e-3 if to_one else 4e-4)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("grad_steps", [0, 1, 3])
def test_only_the_last_steps_carry_a_gradient(scheduler, grad_steps, checkpoint):
    grid = editing.timesteps(scheduler, 20, 0.3)
    weights = {t: torch.ones((), requires_grad=True) for t in grid.tolist()}
    calls = []

    def predict(latents, timestep):
        calls.append(int(timestep))
        return weights[int(timestep)] * wavy(latents, timestep)

    start = torch.randn(1, 4, 2, 4, 4)
    out = editing.denoise(predict, start, scheduler, grid, grad_steps=grad_steps, checkpoint=checkpoint)
    assert out.requires_grad == (grad_steps > 0)
    if grad_steps:
        out.square().sum().backward()
    assert [t for t, w in weights.items() if w.grad is not None] == grid.tolist()[len(grid) - grad_steps :]
    # Checkpointed steps, and no others, run a second time in the backward pass.
    assert len(calls) == len(grid) + (grad_steps if checkpoint else 0)


def test_checkpointing_changes_no_bit(scheduler):
    weight = torch.tensor(0.7, requires_grad=True)
    start = torch.randn(1, 4, 2, 4, 4)
    results = []
    for checkpoint in (False, True):
        grid = editing.timesteps(scheduler, 20, 0.3)
        out = editing.denoise(
            lambda z, t: weight * wavy(z, t), start, scheduler, grid, grad_steps=3, checkpoint=checkpoint
        )
        results.append((out, *torch.autograd.grad(out.square().sum(), weight)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("grad_steps", [-1, 7])
def test_more_gradient_steps_than_steps_are_refused(scheduler, grad_steps):
    grid = editing.timesteps(scheduler, 20, 0.3)
    with pytest.raises(ValueError, match=f"grad_steps {grad_steps} of a chain of 6"):
        editing.denoise(wavy, torch.zeros(1, 4, 1, 2, 2), scheduler, grid, grad_steps=grad_steps)


@pytest.mark.parametrize(
    ("which", "count", "expected"),
    [("last", 2, {4, 5}), ("last", 0, set()), ([1, -1], 1, {0, 5}), ([3], 1, {2}), ([], 1, set())],
)
def test_gradient_steps_may_be_the_last_or_listed(which, count, expected):
    assert editing.steps_with_gradient(which, count, 6) == expected


def test_random_gradient_steps_are_drawn_anew_and_reach_every_step():
    drawn = [editing.steps_with_gradient("random", 2, 6, torch.Generator().manual_seed(n)) for n in range(40)]
    assert {len(each) for each in drawn} == {2}
    assert frozenset.union(*drawn) == frozenset(range(6))
    assert drawn[3] == editing.steps_with_gradient("random", 2, 6, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("step", [0, 7, -7])
def test_gradient_steps_that_the_chain_lacks_are_refused(step):
    with pytest.raises(ValueError, match=f"step {step} of a chain of 6 steps; allowed: 1 to 6, or -6 to -1"):
        editing.steps_with_gradient([step], 1, 6)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("detach_input", [False, True])
def test_chosen_steps_carry_a_gradient_and_the_others_count_as_constants(scheduler, detach_input, checkpoint):
    """Against a chain written out: what a step without gradient predicts, and a detached input, are numbers."""
    schedule = Diffusion(scheduler)
    chain, grad_on = schedule.chain(5), {1, 3}
    weights = torch.ones(5, requires_grad=True)
    numbers = {timestep: number for number, timestep in enumerate(chain.timesteps.tolist())}

    def predict(latents, timestep):
        return weights[numbers[int(timestep)]] * wavy(latents, timestep)

    start = torch.randn(1, 4, 2, 4, 4)
    out = editing.run_chain(
        predict, start, schedule, chain, grad_on=grad_on, detach_input=detach_input, checkpoint=checkpoint
    )
    (ours,) = torch.autograd.grad(out.square().sum(), weights)

    latents = start
    for number, timestep in enumerate(chain.timesteps):
        predicted = predict(latents.detach() if detach_input else latents, timestep)
        latents = schedule.step(
            latents, predicted if number in grad_on else predicted.detach(), *chain.levels[number : number + 2]
        )[0]
    (expected,) = torch.autograd.grad(latents.square().sum(), weights)
    torch.testing.assert_close(ours, expected)
    assert [number for number, slope in enumerate(ours) if slope] == [1, 3]


def test_a_detached_input_keeps_the_way_through_the_steps_alone(scheduler):
    """With K = 2 the first of both steps reaches the end by DDIM's factor, not through the second prediction."""
    schedule = Diffusion(scheduler)
    chain = schedule.chain(20, 0.6).last(2)
    first = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    predict = iter([lambda z: first + 0 * z, lambda z: 5 * z])
    start = torch.ones_like(first)
    out = editing.run_chain(
        lambda z, t: next(predict)(z), start, schedule, chain, grad_on={0, 1}, detach_input=True, checkpoint=False
    )
    (slope,) = torch.autograd.grad(out.sum(), first)
    before, between, after = chain.levels.double()
    through_first = (1 - between) ** 0.5 - (between / before) ** 0.5 * (1 - before) ** 0.5
    assert slope.item() == pytest.approx((through_first * (after / between) ** 0.5).item(), rel=1e-4)


def test_guidance_is_one_call_with_the_unconditional_half_first():
    latents = torch.randn(2, 4, 3, 8, 8)
    calls = []

    def pair(doubled, timestep):
        calls.append(doubled)
        return torch.cat([doubled[:2] + 1, doubled[2:] + 3])

    out = editing.guided(pair, 3.0)(latents, torch.tensor(1))
    assert len(calls) == 1
    assert torch.equal(calls[0], torch.cat([latents, latents]))
    torch.testing.assert_close(out, latents + 1 + 3.0 * 2)


def test_offset_noise_shifts_whole_frames():
    latents = torch.zeros(8, 4, 16, 32, 32)
    noise = editing.offset_noise(latents, 0.5, torch.Generator().manual_seed(0))
    shifts = noise.mean(dim=(-2, -1))
    assert shifts.std().item() == pytest.approx((0.5**2 + 1 / 32**2) ** 0.5, rel=0.1)
    assert (noise - shifts[..., None, None]).std().item() == pytest.approx(1, rel=0.01)
    plain = editing.offset_noise(latents, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(plain, torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)))


def test_a_clip_with_its_own_generator_gets_the_same_noise_in_any_batch():
    def generators(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    latents = torch.zeros(2, 4, 3, 8, 8)
    both = editing.offset_noise(latents, 0.1, generators(5, 6))
    alone = editing.offset_noise(latents[1:], 0.1, generators(6))
    assert torch.equal(both[1:], alone)
    with pytest.raises(ValueError, match="one per clip"):
        editing.offset_noise(latents, 0.1, generators(5))
