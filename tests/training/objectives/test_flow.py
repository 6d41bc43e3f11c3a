"""Every objective on a rectified flow: clips are made, and a gradient reaches the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rayvideo import editing
from rayvideo.errors import RecipeError
from rayvideo.evaluation import compare
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe
from rayvideo.schedules import Flow
from rayvideo.sections import Lora
from rayvideo.training import objectives, preflight
from rayvideo.training.meters import Clock
from rayvideo.training.objective import Judged, Made, Objective
from rayvideo.training.objectives.ddpo import Ddpo
from rayvideo.training.sampled import Sample
from tests.training.objectives.test_reward import EMPTY, clips, recipe_with
from tests.training.test_preflight import recipe_with as passing

pytestmark = pytest.mark.usefixtures("process_group")

BATCH = {"batch_size": 2}


@pytest.fixture
def flow(tiny_pipeline: Path) -> VideoModel:
    """A model whose UNet is told floating timesteps, and whose answers are taken for velocities."""
    loaded = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    loaded.denoiser = add_lora(loaded.denoiser, Lora(), seed=0)
    loaded.schedule = Flow(FlowMatchEulerDiscreteScheduler(shift=3.0))
    return loaded


def built(recipe: Recipe, flow: VideoModel) -> Objective[Any]:
    return objectives.build(recipe, flow, EMPTY, Clock(torch.device("cpu")))


def judged(made: Made) -> Iterator[Judged]:
    yield Judged(made, made.pixels.flatten(1).mean(1))


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"objective": "draft"},
        {"objective": "draft", "draft": {"noisings": 2}},
        {"objective": "rwr", **BATCH},
        {"objective": "rwr", "rwr": {"samples": "data"}, **BATCH},
        {"objective": "ddpo", **BATCH},
    ],
    ids=["reward", "draft", "draft-LV", "rwr", "rwr-data", "ddpo"],
)
def test_every_objective_moves_the_adapter(flow, training):
    objective = built(recipe_with(training=training), flow)
    made = objective.make(clips(1, 2), 1, 0)
    assert made.pixels.isfinite().all()
    for losses in objective.updates(1, judged(made)):
        for loss in losses:
            assert loss.value.isfinite()
            loss.value.backward()
    gradients = [w.grad for name, w in lora_parameters(flow.denoiser).items() if "lora_B" in name]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_an_edit_starts_at_its_sigma_with_plain_noise(flow, monkeypatch):
    """No offset noise, whatever the release adds to a diffusion's."""
    seen: list[tuple[Tensor, Tensor]] = []
    predict = flow.predict

    def told(latents: Tensor, timestep: Tensor, prompts: Tensor) -> Tensor:
        seen.append((latents, timestep))
        return predict(latents, timestep, prompts)

    monkeypatch.setattr(flow, "predict", told)
    objective = built(recipe_with(editing={"steps": 5, "start_sigma": 0.7, "guidance": 1.0}), flow)
    with torch.no_grad():
        objective.make(clips(1), 1, 0)
    levels = flow.schedule.chain(5).levels[-3:-1]
    assert 0.3 < levels[1] < levels[0] <= 0.7 < flow.schedule.chain(5).levels[-4]
    assert torch.equal(torch.stack([timestep for _, timestep in seen]), 1000 * levels)
    generators = objective._generators("edit", clips(1), 1, 0)
    latents = objective._encoded(clips(1), generators)
    noise = editing.offset_noise(latents, 0.0, generators)
    assert torch.equal(seen[0][0], flow.schedule.corrupt(latents, noise, levels[0]))


def test_offset_noise_can_be_asked_for(flow):
    first = [built(recipe_with(editing={"steps": 5, **changed}), flow) for changed in ({}, {"offset_noise": 0.1})]
    with torch.no_grad():
        plain, shifted = (objective.make(clips(1), 1, 0).pixels for objective in first)
    assert not torch.equal(plain, shifted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_sigma": 0.1}, r"^editing\.start_sigma 0\.1: none of 5 steps .* nearest allowed: 0\.4298$"),
        ({"start_sigma": 0.5, "grad_steps": 2}, r"0\.5: the chain has 1 steps, fewer than editing\.grad_steps 2"),
        ({"start_sigma": 0.5, "grad_on": [2]}, r"0\.5: editing\.grad_on: step 2 of a chain of 1 steps"),
    ],
)
def test_a_start_that_leaves_too_few_steps_is_refused(flow, options, message):
    recipe = recipe_with(editing={"steps": 5, **options})
    with pytest.raises(RecipeError, match=message):
        objectives.resolve("reward").chain(recipe, flow.schedule)


def test_a_start_is_for_edits_alone(flow):
    recipe = recipe_with(editing={"steps": 5, "start_sigma": 0.5}, training={"objective": "draft"})
    assert objectives.resolve("draft").chain(recipe, flow.schedule).steps == 5


def test_ddpo_learns_all_steps_but_the_last_and_goes_over_those_it_took(flow):
    policy = built(recipe_with(training={"objective": "ddpo", **BATCH}), flow)
    assert isinstance(policy, Ddpo)
    assert policy.passes == 4
    assert policy.noisiest[0] == flow.schedule.chain(5).levels[1]  # all noise is new after the first step
    sample = policy.make(clips(1, 2), 1, 0)
    assert isinstance(sample, Sample)
    for number in range(policy.passes):
        assert policy.loss(sample, torch.tensor([1.0, 5.0]), 1, number).item() == pytest.approx(-3.0, abs=1e-4)


def test_the_same_sigma_leaves_fewer_steps_of_a_flow_that_is_shifted_more(flow):
    recipe = recipe_with(editing={"steps": 20, "start_sigma": 0.658})
    for shift, steps in ((None, 7), (1.0, 13), (12.0, 2)):
        flow.schedule = flow.schedule.shifted(shift)
        assert built(recipe, flow)._chain.steps == steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"editing": {"start_sigma": 0.6}},
            r"^editing\.start_sigma 0\.6: this model is a diffusion, which has no sigma",
        ),
        ({"model__shift": 3.0}, r"^model\.shift 3\.0: this model is a diffusion, which has no shift; set it to null"),
    ],
)
def test_what_flows_alone_have_is_refused_by_a_diffusion(tiny_pipeline, tiny_judge, tmp_path, change, message):
    recipe = passing(tiny_pipeline, tiny_judge, tmp_path, **change)
    with pytest.raises(RecipeError, match=message):
        preflight.check(recipe)
    if "model__shift" in change:
        with pytest.raises(RecipeError, match=message):
            compare.check(recipe, None)
