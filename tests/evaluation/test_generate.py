"""A clip is a function of its caption and its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import TextToVideoSDPipeline
from torch import Tensor

from rayvideo import editing
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.generate import embed_captions, generate_clips, to_frames, to_pixels
from rayvideo.models import VideoModel, load_model
from rayvideo.models.modelscope import ModelScope
from rayvideo.seeding import generator_for

CAPTIONS = ["red cat", "dog jumping", "a blue bird", "red cat", "cow"]
SEEDS = [0, 0, 1, 7, 0]
SIZE: dict[str, Any] = {"steps": 3, "guidance": 3.0, "frames": 4, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path) -> VideoModel:
    return load_model(tiny_pipeline)


@pytest.fixture(scope="module")
def clips(model: VideoModel) -> Tensor:
    return generate_clips(model, CAPTIONS, SEEDS, batch_size=8, **SIZE)


def test_shape_and_range(clips: Tensor) -> None:
    assert clips.shape == (5, 4, 3, 64, 64)
    assert clips.dtype == torch.float32
    assert clips.min() >= 0
    assert clips.max() <= 1
    assert not torch.allclose(clips[0], clips[3], atol=0.01)  # same caption, other seed
    assert not torch.allclose(clips[0], clips[4], atol=0.01)  # same seed, other caption


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_does_not_matter(model: VideoModel, clips: Tensor, batch_size: int) -> None:
    again = generate_clips(model, CAPTIONS, SEEDS, batch_size=batch_size, **SIZE)
    torch.testing.assert_close(again, clips, atol=1e-5, rtol=0)


def test_order_and_company_do_not_matter(model: VideoModel, clips: Tensor) -> None:
    chosen = [4, 1, 3]
    again = generate_clips(model, [CAPTIONS[i] for i in chosen], [SEEDS[i] for i in chosen], **SIZE)
    torch.testing.assert_close(again, clips[chosen], atol=1e-5, rtol=0)


def test_model_without_text_tower_needs_embeddings(model: VideoModel, clips: Tensor, tiny_pipeline: Path) -> None:
    embeddings = embed_captions(load_model(tiny_pipeline, parts=("text",)), CAPTIONS)
    assert list(embeddings) == ["", *dict.fromkeys(CAPTIONS)]
    slim = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    again = generate_clips(slim, CAPTIONS, SEEDS, embeddings=embeddings, **SIZE)
    torch.testing.assert_close(again, clips, atol=1e-5, rtol=0)


def test_equals_the_diffusers_pipeline(model: VideoModel, clips: Tensor, tiny_pipeline: Path) -> None:
    pipeline = TextToVideoSDPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    noise = editing.normal((1, *model.latent_shape(4, 64, 64)), generator_for(SEEDS[1], "generate", CAPTIONS[1]))
    made = pipeline(
        CAPTIONS[1], num_frames=4, height=64, width=64, num_inference_steps=3, guidance_scale=3.0, latents=noise,
        output_type="pt", negative_prompt="",
    ).frames  # fmt: skip
    torch.testing.assert_close(made[0], clips[1], atol=1e-4, rtol=0)


def test_a_guidance_of_1_is_the_captions_prediction_alone_at_half_the_cost(model: VideoModel) -> None:
    passes: list[int] = []
    made: list[int] = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    size = {**SIZE, "guidance": 1.0}
    alone = generate_clips(model, CAPTIONS, SEEDS, batch_size=3, told=made.append, **size)
    hook.remove()
    assert passes == 3 * [3] + 3 * [2]  # clips, and as many steps
    assert made == [3, 5]
    nearly = generate_clips(model, CAPTIONS, SEEDS, batch_size=3, **{**SIZE, "guidance": 1.0001})
    torch.testing.assert_close(alone, nearly, atol=1e-3, rtol=0)


def test_guidance_leads_away_from_the_negative_prompt(model: VideoModel, clips: Tensor, tiny_pipeline: Path) -> None:
    away = generate_clips(model, CAPTIONS[:2], SEEDS[:2], negative_prompt="dull", **SIZE)
    assert not torch.allclose(away, clips[:2], atol=1e-3)
    pipeline = TextToVideoSDPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    noise = editing.normal((1, *model.latent_shape(4, 64, 64)), generator_for(SEEDS[1], "generate", CAPTIONS[1]))
    made = pipeline(
        CAPTIONS[1], num_frames=4, height=64, width=64, num_inference_steps=3, guidance_scale=3.0, latents=noise,
        output_type="pt", negative_prompt="dull",
    ).frames  # fmt: skip
    torch.testing.assert_close(made[0], away[1], atol=1e-4, rtol=0)


def test_in_tiles_clips_that_are_larger_than_one_differ_a_little(model: VideoModel) -> None:
    wide: dict[str, Any] = {**SIZE, "steps": 1, "frames": 1, "width": 448}
    whole, tiled = (generate_clips(model, CAPTIONS[:1], SEEDS[:1], tiled=tiled, **wide) for tiled in (False, True))
    assert tiled.shape == whole.shape == (1, 1, 3, 64, 448)
    assert 0 < (tiled - whole).square().mean().sqrt() < 0.2 * whole.std()
    small = [generate_clips(model, CAPTIONS[:1], SEEDS[:1], tiled=tiled, **SIZE) for tiled in (False, True)]
    assert torch.equal(*small)


class Hungry(ModelScope):
    """Needs more memory than there is, to decode more than one frame of a tile, or to denoise several clips."""

    def decode_frames(self, latents: Tensor, indices: Tensor | None = None, *, context: int | None = None) -> Tensor:
        if latents.shape[2] > 1 or latents.shape[4] > 32:
            torch.empty(2**60)
        return super().decode_frames(latents, indices, context=context)

    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        if len(latents) > 2:  # one clip, guided
            torch.empty(2**60)
        return super().predict(latents, timestep, prompt_embeds)


def test_a_lack_of_memory_is_said_with_its_mend(tiny_pipeline: Path) -> None:
    model = load_model(tiny_pipeline, family=f"{__name__}:Hungry")
    wide: dict[str, Any] = {**SIZE, "steps": 1, "frames": 1, "width": 320}
    with pytest.raises(EvaluationError, match=r"out of memory in decoding .*; set model.tiled_decoding=true \(.*alloc"):
        generate_clips(model, CAPTIONS[:1], SEEDS[:1], **wide)
    assert generate_clips(model, CAPTIONS[:1], SEEDS[:1], tiled=True, **wide).shape[-1] == 320
    with pytest.raises(EvaluationError, match=r"in decoding .*; lower data.frames, data.height or data.width \("):
        generate_clips(model, CAPTIONS[:1], SEEDS[:1], tiled=True, **{**wide, "frames": 2})
    with pytest.raises(EvaluationError, match=r"in denoising .*; lower evaluation.batch_size 2, or the clips' size \("):
        generate_clips(model, CAPTIONS[:2], SEEDS[:2], batch_size=2, **wide)


def test_every_caption_needs_a_seed(model: VideoModel) -> None:
    with pytest.raises(ValueError, match="5 captions, 2 seeds"):
        generate_clips(model, CAPTIONS, [0, 1], **SIZE)


def test_pixels_and_back() -> None:
    frames = torch.rand(2, 3, 3, 4, 6)
    pixels = to_pixels(frames)
    assert pixels.shape == (2, 3, 4, 6, 3)
    assert to_frames(pixels).shape == frames.shape
    torch.testing.assert_close(to_frames(pixels), frames, atol=0.5 / 255 + 1e-6, rtol=0)
