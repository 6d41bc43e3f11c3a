"""Editing a micro-batch: each clip's numbers are its own, and only the judged frames are decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayvideo.data.table import Batch
from rayvideo.errors import RecipeError
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.models.pieces import feed_forward_in_pieces
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.sections import Lora
from rayvideo.training import objectives
from rayvideo.training.guards import NonFiniteError
from rayvideo.training.meters import Clock
from rayvideo.training.objective import Objective

EMPTY = torch.zeros(1, 48, 32)


def recipe_with(**changes: Any) -> Recipe:
    tree = {
        "model": {"path": "unused", "checkpointing": "none"},
        "data": {"manifest": "unused", "frames": 4},
        "editing": {"steps": 5},
        "reward": {"judges": [{"name": "judge"}], "segments": 2},
    }
    return parse_recipe(tree | changes)


def clips(*numbers: int) -> Batch:
    """Stored posteriors of made-up clips, the same for the same number."""

    def draw(*shape: int) -> Tensor:
        own = (torch.Generator().manual_seed(number) for number in numbers)
        return torch.stack([torch.randn(shape, generator=generator) for generator in own])

    names = [str(number) for number in numbers]
    mean, embeddings = draw(4, 4, 8, 8), draw(48, 32)
    return Batch(list(numbers), names, names, 5 * mean, mean - 4, embeddings)


@pytest.fixture
def model(tiny_pipeline: Path) -> VideoModel:
    loaded = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    loaded.denoiser = add_lora(loaded.denoiser, Lora(), seed=0)
    return loaded


def objective_of(recipe: Recipe, model: VideoModel) -> Objective[Any]:
    return objectives.build(recipe, model, EMPTY, Clock(torch.device("cpu")))


def edit(recipe: Recipe, model: VideoModel, batch: Batch, step: int = 1, first: int = 0) -> tuple[Tensor, Tensor]:
    edited = objective_of(recipe, model).make(batch, step, first)
    return edited.pixels, edited.drawn


def test_a_clip_depends_on_its_place_in_the_step_alone(model):
    recipe = recipe_with()
    together, indices = edit(recipe, model, clips(1, 2), first=4)
    alone, own_indices = edit(recipe, model, clips(2), first=5)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(indices[1:], own_indices)


@pytest.mark.parametrize("change", [{"step": 2}, {"first": 1}, {"seed": 1}])
def test_noise_is_new_for_each_step_place_and_seed(model, change):
    recipe = recipe_with(seed=change.pop("seed", 0))
    pixels, _ = edit(recipe_with(), model, clips(1))
    assert not torch.allclose(pixels, edit(recipe, model, clips(1), **change)[0], atol=1e-2)


def test_only_the_adapter_gets_a_gradient(model):
    pixels, indices = edit(recipe_with(), model, clips(1, 2))
    assert pixels.shape == (2, 2, 3, 64, 64)
    assert indices.shape == (2, 2)
    pixels.square().mean().backward()
    adapter = lora_parameters(model.denoiser)
    # B = 0 at the start, so A's gradient is 0, but it is there.
    assert all(weight.grad is not None for weight in adapter.values())
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for name, w in adapter.items() if "lora_B" in name)
    parts = {"denoiser": model.denoiser, "vae": model._vae}
    touched = {
        f"{part}.{name}"
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if weight.grad is not None
    }
    assert touched == {f"denoiser.{name}" for name in adapter}


@pytest.mark.parametrize("checkpointing", ["step", "blocks", "both"])
def test_recomputing_changes_nothing(tiny_pipeline, model, checkpointing):
    def gradient(model: VideoModel, kind: str) -> Tensor:
        recipe = recipe_with(
            model={"path": "unused", "checkpointing": kind}, editing={"steps": 5, "grad_steps": 2, "strength": 0.8}
        )
        edit(recipe, model, clips(1))[0].square().mean().backward()
        return torch.cat([w.grad.flatten() for w in lora_parameters(model.denoiser).values() if w.grad is not None])

    other = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    other.denoiser = add_lora(other.denoiser, Lora(), seed=0)
    if checkpointing != "step":
        other.enable_checkpointing()
    assert torch.equal(gradient(model, "none"), gradient(other, checkpointing))


def test_one_clip_and_prompt_at_a_time_is_the_same_but_for_last_bits(tiny_pipeline, model):
    calls: list[int] = []
    made = {}
    for kind in ("none", "clips"):
        loaded = load_model(tiny_pipeline, parts=("denoiser", "vae"))
        loaded.denoiser = add_lora(loaded.denoiser, Lora(), seed=0)
        if kind == "clips":
            loaded.enable_checkpointing()
            feed_forward_in_pieces(loaded.denoiser)
        recipe = recipe_with(model={"path": "unused", "checkpointing": kind})
        asked = watch(loaded)
        pixels, _ = edit(recipe, loaded, clips(1, 2))
        calls = [len(latents) for latents, _ in asked]
        pixels.square().mean().backward()
        gradient = [w.grad for w in lora_parameters(loaded.denoiser).values() if w.grad is not None]
        made[kind] = pixels.detach(), torch.cat([one.flatten() for one in gradient])
    assert set(calls) == {1}
    for ours, whole in zip(made["clips"], made["none"], strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-6 + 1e-4 * whole.abs().max().item())


def test_saturated_pixels_are_counted_and_clamped(model):
    bright = clips(1)
    loud = Batch(bright.ids, bright.videos, bright.captions, bright.mean * 50, bright.logvar, bright.embeddings)
    edited = objective_of(recipe_with(), model).make(loud, 1, 0)
    assert 0 <= edited.saturation <= 1
    assert edited.pixels.min() >= 0
    assert edited.pixels.max() <= 1
    outside = ((edited.pixels == 0) | (edited.pixels == 1)).float().mean().item()
    assert edited.saturation == pytest.approx(outside, abs=1e-6)


def test_nan_stops_where_it_appears(model):
    spoilt = clips(1, 2)
    spoilt.mean[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"step 3: NaN or Inf in the edited latents of clip 2 \(2, '2'\)"):
        edit(recipe_with(), model, spoilt, step=3)


def test_nan_in_the_gradient_stops_the_backward_pass(model):
    pixels, _ = edit(recipe_with(), model, clips(1, 2), step=3)
    spoilt = torch.zeros_like(pixels)
    spoilt[0, 0, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"step 3: NaN or Inf in the latents' gradient of clip 1 "):
        pixels.backward(spoilt)


def test_frames_decoded_one_by_one_teach_the_same(model):
    slopes = []
    for decode in ("together", "frame_by_frame"):
        recipe = recipe_with(reward={"judges": [{"name": "judge"}], "segments": 2, "decode": decode})
        edit(recipe, model, clips(1, 2))[0].square().mean().backward()
        weights = lora_parameters(model.denoiser).values()
        slopes.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
        model.denoiser.zero_grad()
    assert slopes[0].any()
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("objective", ["reward", "draft"])
def test_a_causal_vae_and_a_schedule_that_ends_without_noise_serve_as_well(tiny_cog, objective):
    """CogVideoX: latents of fewer frames than the clip has, v-prediction, levels in fp64."""
    model: Any = load_model(tiny_cog, parts=("denoiser", "vae"))
    model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
    recipe = recipe_with(
        data={"manifest": "unused", "frames": 9, "height": 32, "width": 48}, training={"objective": objective}
    )
    mean, embeddings = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 226, 16)
    batch = Batch([1, 2], ["1", "2"], ["1", "2"], mean, mean - 4, embeddings)
    empty = torch.zeros(1, 226, 16)
    edited = objectives.build(recipe, model, empty, Clock(torch.device("cpu"))).make(batch, 1, 0)
    assert edited.pixels.shape == (2, 2, 3, 32, 48)
    assert edited.drawn.amax() < 9
    edited.pixels.square().mean().backward()
    adapter = lora_parameters(model.denoiser)
    assert adapter
    for name, weight in adapter.items():
        assert weight.grad is not None
        assert bool(weight.grad.any()) == ("lora_B" in name), "A's gradient is 0 as long as B is"


class TestCheaperRollouts:
    def test_fewer_steps_of_second_order_end_near_the_chain_and_keep_its_last_step(self, model):
        asked = watch(model)
        whole, _ = edit(recipe_with(editing={"steps": 10}), model, clips(1))
        assert len(asked) == 6
        asked.clear()
        cheap = {"rollout_solver": "dpmsolver++", "rollout_steps": 2}
        pixels, _ = edit(recipe_with(editing={"steps": 10, **cheap}), model, clips(1))
        assert [(len(latents), grad) for latents, grad in asked] == [(2, False), (2, False), (2, True)]
        assert 0 < (pixels - whole).abs().mean() < 0.1 * whole.std()

    def test_outside_the_interval_the_captions_prediction_alone_is_asked_for(self, model):
        asked = watch(model)
        edit(recipe_with(editing={"steps": 10, "guidance_interval": [0.0, 0.5]}), model, clips(1))
        noise = model.schedule.mixture(model.schedule.chain(10, 0.6).levels[:-1])[1].tolist()
        guided = [sigma <= 0.5 for sigma in noise]
        assert [len(latents) for latents, _ in asked] == [2 if both else 1 for both in guided]
        assert 1 < sum(guided) < 5
        asked.clear()
        edit(recipe_with(editing={"steps": 10, "guidance_interval": [0.99, 1.0]}), model, clips(1))
        assert [len(latents) for latents, _ in asked] == [1, 1, 1, 1, 1, 2]  # the step with the gradient is guided

    def test_a_rollout_is_used_again_with_new_noise_and_frames(self, model):
        once = objective_of(recipe_with(), model).make(clips(1, 2), 1, 0)
        asked = watch(model)
        thrice = objective_of(recipe_with(editing={"steps": 5, "reuse": 3}), model).make(clips(1, 2), 1, 0)
        # Two steps without a gradient for both clips, one to finish them, and one with a gradient for all six.
        assert [(len(latents), grad) for latents, grad in asked] == [(4, False), (4, False), (4, False), (12, True)]
        assert thrice.clips.ids == [1, 2, 1, 2, 1, 2]
        assert thrice.clips.captions == ["1", "2"] * 3
        assert thrice.pixels.shape == (6, *once.pixels.shape[1:])
        assert torch.equal(thrice.drawn[:2], once.drawn)
        torch.testing.assert_close(thrice.pixels[:2], once.pixels, rtol=1e-4, atol=1e-5)
        assert not torch.equal(thrice.drawn[2:4], thrice.drawn[4:])
        assert not torch.allclose(thrice.pixels[2:4], thrice.pixels[4:], atol=1e-3)
        thrice.pixels.mean().backward()
        assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in lora_parameters(model.denoiser).values())

    @pytest.mark.parametrize(
        ("editing", "training", "said"),
        [
            ({"rollout_steps": 3}, {}, r"editing\.rollout_steps 3: 2 of the chain's 3 steps come before the first"),
            (
                {"guidance_interval": [0.7, 0.2]},
                {},
                r"editing\.guidance_interval \[0\.7, 0\.2\]: allowed are two rising",
            ),
            ({"reuse": 2}, {"objective": "draft"}, r"editing\.reuse 2: training\.objective 'draft' does not know it"),
            (
                {"rollout_solver": "dpmsolver++"},
                {"objective": "ddpo", "samples_per_caption": 2, "batch_size": 2},
                r"editing\.rollout_solver 'dpmsolver\+\+': training\.objective 'ddpo' does not know it",
            ),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, editing, training, said):
        with pytest.raises(RecipeError, match=said):
            recipe_with(editing={"steps": 5, **editing}, training=training)


def watch(model: VideoModel) -> list[tuple[Tensor, bool]]:
    """Latents of each call of the denoiser from now on, and whether it had a gradient."""
    asked: list[tuple[Tensor, bool]] = []
    model.denoiser.register_forward_pre_hook(lambda _, inputs: asked.append((inputs[0], torch.is_grad_enabled())))
    return asked
