"""CogVideoX in the real format, against diffusers' own pipeline, scheduler and VAE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline, DDIMScheduler
from torch import Tensor, nn

from rayvideo import editing
from rayvideo.models import ModelError, load_model
from rayvideo.models.cogvideox import CogVideoX
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.schedules import Diffusion
from rayvideo.sections import Lora
from tests import tiny_cogvideox as tiny
from tests.tiny import REFERENCE_SCHEDULE

PROMPTS = ["a red cat", "a dog jumps"]


def load(folder: Path, **options: Any) -> Any:
    """Not typed, because these tests look at what the family keeps to itself."""
    return load_model(folder, **options)


@pytest.fixture(scope="module")
def model(tiny_cog: Path) -> Any:
    return load(tiny_cog)


@pytest.fixture
def folder(tiny_cog: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may spoil."""
    return shutil.copytree(tiny_cog, tmp_path / "pipeline")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def gradient(pixels: Tensor, latents: Tensor) -> Tensor:
    """d/d(latents) of a sum in which every pixel has another weight."""
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((pixels * weights).sum(), latents)[0]


def pieces_run(model: Any, latents: Tensor, *arguments: Any, **options: Any) -> list[bool]:
    """For each piece that the decoder ran, whether it kept a graph."""
    live: list[bool] = []
    hook = model._vae.decoder.register_forward_hook(lambda _, __, out: live.append(out[0].requires_grad))
    model.decode_frames(latents, *arguments, **options)
    hook.remove()
    return live


@pytest.mark.parametrize("kind", ["2B", "5B"])
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 48), (17, 64, 48)])
def test_clips_are_made_as_the_pipeline_makes_them(tmp_path, kind, frames, height, width):
    """At the size that the positions were made for, and at another."""
    tiny.save_pipeline(tmp_path, kind)
    model, pipeline = load(tmp_path), CogVideoXPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, *model.latent_shape(frames, height, width))
    options = {"num_inference_steps": 5, "guidance_scale": 6.0, "height": height, "width": width, "num_frames": frames}
    theirs = pipeline(PROMPTS, latents=start.transpose(1, 2), output_type="latent", **options).frames.transpose(1, 2)
    predict = model.guided(model.encode_prompts(PROMPTS), model.encode_prompts([""]), 6.0)
    with torch.no_grad():
        ours = editing.run_chain(predict, start, model.schedule, model.schedule.chain(5))
        pixels = pipeline.decode_latents(theirs.transpose(1, 2)).transpose(1, 2) * 0.5 + 0.5
        assert pixels.shape == (2, frames, 3, height, width)
        torch.testing.assert_close(model.decode_frames(ours), pixels, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_prompts_are_embedded_as_the_pipeline_does(tiny_cog, model):
    prompts = ["a red cat", "", "zebra " * 300]
    theirs, _ = CogVideoXPipeline.from_pretrained(tiny_cog).encode_prompt(prompts, do_classifier_free_guidance=False)
    ours = model.encode_prompts(prompts)
    assert model.prompt_shape == (226, tiny.TEXT_WIDTH)
    assert ours.shape == (3, 226, tiny.TEXT_WIDTH)
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-4)
    assert model.prompt_width == tiny.TEXT_WIDTH


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_chain_takes_diffusers_steps_from_noise_alone(steps, shift):
    """The first level is ᾱ = 0, where a noise could not be told from the latents; 5B has a shift of 1, 2B of 3."""
    scheduler = CogVideoXDDIMScheduler(**tiny.SCHEDULE | {"snr_shift_scale": shift})
    schedule, latents = Diffusion(scheduler, "v_prediction"), torch.randn(2, 4, 3, 4, 6)
    chain = schedule.chain(steps)
    assert chain.levels[[0, -1]].tolist() == [0, 1]
    scheduler.set_timesteps(steps)
    assert torch.equal(chain.timesteps, scheduler.timesteps)
    for number, timestep in enumerate(chain.timesteps):
        v = torch.sin(3 * latents + timestep / 100)
        mean, _ = schedule.step(latents, v, *chain.levels[number : number + 2])
        latents = scheduler.step(v, timestep, latents).prev_sample
        assert mean.dtype == latents.dtype
        torch.testing.assert_close(mean, latents, atol=2e-6, rtol=1e-5)


def test_corrupted_clips_are_diffusers(model):
    scheduler = CogVideoXDDIMScheduler(**tiny.SCHEDULE)
    clean, noise, timesteps = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 4, 3, 4, 6), torch.tensor([599, 999])
    noisy = model.schedule.corrupt(clean, noise, model.schedule.level(timesteps))
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps))
    assert torch.equal(noisy[1], noise[1])


def test_strengths_that_the_docs_name_start_no_noisier_than_the_papers():
    """And the next ones do."""

    def noisiness(schedule: Diffusion, strength: float) -> float:
        level = schedule.chain(20, strength).levels[0]
        return ((1 - level) / level).sqrt().item()

    papers = noisiness(Diffusion(DDIMScheduler(**REFERENCE_SCHEDULE)), 0.6)
    for shift, strength, next_one in ((3.0, 0.35, 0.4), (1.0, 0.5, 0.55)):
        schedule = Diffusion(CogVideoXDDIMScheduler(**tiny.SCHEDULE | {"snr_shift_scale": shift}), "v_prediction")
        assert noisiness(schedule, strength) < papers < noisiness(schedule, next_one)


@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_either_scheduler_is_read_as_ddim_that_starts_at_pure_noise(folder, kind, spacing):
    kind(**tiny.SCHEDULE | {"timestep_spacing": spacing}).save_pretrained(folder / "scheduler")
    chain = load(folder, parts=("vae",)).schedule.chain(20, 0.6)
    assert chain.timesteps.tolist() == list(range(599, 0, -50))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "scheduler is a DDIMScheduler; allowed are CogVideoXDDIMScheduler"),
        ({"prediction_type": "epsilon"}, "prediction_type 'epsilon'"),
    ],
)
def test_another_noise_schedule_is_refused(folder, values, message):
    change(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(ModelError, match=message):
        load(folder, parts=("vae",))


def test_clips_are_encoded_as_the_vae_does(model):
    frames = torch.rand(2, 17, 3, 32, 48)
    posterior = model.encode_frames(frames)
    theirs = model._vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist
    assert torch.equal(posterior.mean, theirs.mean)
    assert torch.equal(posterior.logvar, theirs.logvar)
    assert posterior.mean.shape == (2, *model.latent_shape(17, 32, 48))
    torch.testing.assert_close(posterior.mode(), theirs.mean * tiny.SCALING_FACTOR)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("context", [None, 0, 1])
def test_pixels_are_the_vaes_bit_for_bit(model, count, context):
    latents = 3 * torch.randn(2, tiny.CHANNELS, count, 4, 6)
    whole = [model._vae.decode(one / tiny.SCALING_FACTOR).sample.transpose(1, 2) for one in latents.split(1)]
    expected = torch.cat(whole) * 0.5 + 0.5
    assert expected.max() > 1, "the VAE does not clamp, and neither may we"
    assert torch.equal(model.decode_frames(latents, context=context), expected)
    last = 4 * (count - 1)
    indices = torch.tensor([[0, last, last // 2], [last // 4, 0, 0]])
    chosen = model.decode_frames(latents, indices, context=context)
    assert torch.equal(chosen, expected[torch.arange(2)[:, None], indices])


def test_the_whole_gradient_is_autograds(model):
    latents = torch.randn(1, tiny.CHANNELS, 7, 4, 6, requires_grad=True)
    indices = torch.tensor([[2, 14, 19]])
    whole = model._vae.decode(latents / tiny.SCALING_FACTOR).sample.transpose(1, 2) * 0.5 + 0.5
    expected = gradient(whole[:, indices[0]], latents)
    torch.testing.assert_close(gradient(model.decode_frames(latents, indices), latents), expected, rtol=1e-4, atol=1e-5)
    assert expected[:, :, 0].norm() > 1e-3 * expected.norm(), "else nothing here looks back"


@pytest.mark.parametrize(("context", "first"), [(0, 5), (1, 3), (2, 3), (3, 0), (None, 0)])
def test_within_its_window_a_gradient_is_exact_and_before_it_there_is_none(model, context, first):
    """Frame 19 is of latent frame 5, which is decoded with 6; the pieces before are 3 and 4, and 0 to 2."""
    latents = torch.randn(1, tiny.CHANNELS, 7, 4, 6, requires_grad=True)
    frame = torch.tensor([[19]])
    whole = gradient(model.decode_frames(latents, frame), latents)
    part = gradient(model.decode_frames(latents, frame, context=context), latents)
    torch.testing.assert_close(part[:, :, first:], whole[:, :, first:], rtol=1e-4, atol=1e-5)
    assert not part[:, :, :first].any()
    assert part[:, :, first:].any()


def test_the_own_piece_of_a_later_latent_frame_counts_as_context(model):
    latents = torch.randn(1, tiny.CHANNELS, 7, 4, 6, requires_grad=True)
    assert pieces_run(model, latents, torch.tensor([[24]]), context=1) == [False, False, True]
    assert pieces_run(model, latents, torch.tensor([[24]]), context=2) == [False, True, True]


def test_nothing_is_decoded_behind_the_last_chosen_frame(model):
    latents = torch.randn(2, tiny.CHANNELS, 7, 4, 6, requires_grad=True)
    indices = torch.tensor([[3, 8], [16, 0]])
    assert pieces_run(model, latents, indices, context=0) == [True, True, True]
    assert pieces_run(model, latents[:1], torch.tensor([[9]]), context=0) == [False, True]
    assert model.frames_to_decode(indices, 25) == 9 + 17
    with torch.no_grad():
        assert not any(pieces_run(model, latents, indices))


def test_an_even_number_of_latent_frames_is_none_of_its_clips(model):
    with pytest.raises(ModelError, match=r"4 latent frames; CogVideoX's VAE decodes 2n\+1 of them"):
        model.decode_frames(torch.randn(1, tiny.CHANNELS, 4, 4, 6))


@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_recomputing_changes_no_bit_and_keeps_less(tiny_cog, part):
    latents = torch.randn(1, tiny.CHANNELS, 5, 4, 6)
    results, held = [], []
    for recompute in (False, True):
        model = load(tiny_cog)
        model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
        adapter = lora_parameters(model.denoiser)
        for name, weight in adapter.items():
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        if recompute:
            model.enable_checkpointing()
        embeds, start = model.encode_prompts(PROMPTS[:1]), latents.clone().requires_grad_()
        kept: list[int] = []

        def pack(saved: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            if part == "denoiser":
                out, wanted = model.predict(start, torch.tensor(49), embeds), [start, *adapter.values()]
            else:
                out, wanted = model.decode_frames(start, torch.tensor([[2, 15]]), context=1), [start]
        held.append(sum(kept))
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted)))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    assert all(result.any() for result in results[0])
    assert held[1] < held[0] / 3


def test_a_bf16_denoiser_takes_and_gives_fp32_latents(tiny_cog, model):
    half = load(tiny_cog, dtype=torch.bfloat16, parts=("denoiser",))
    latents, step, embeds = torch.randn(2, 4, 3, 4, 6), torch.tensor(599), model.encode_prompts(PROMPTS)
    v = half.predict(latents, step, embeds)
    assert half.denoiser.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, model.predict(latents, step, embeds), atol=0.1, rtol=0.1)
    each = model.predict(latents, torch.tensor([599, 49]), embeds)
    torch.testing.assert_close(each[:1], model.predict(latents, step, embeds)[:1])
    assert not torch.allclose(each[1:], model.predict(latents, step, embeds)[1:], atol=1e-2)


def test_shapes_are_those_of_the_whole_model(tiny_cog, model):
    shapes = load(tiny_cog, device="meta")
    assert type(shapes) is CogVideoX
    assert shapes.latent_shape(17, 64, 48) == model.latent_shape(17, 64, 48) == (tiny.CHANNELS, 5, 8, 6)
    assert (shapes.prompt_shape, shapes.prompt_width) == (model.prompt_shape, model.prompt_width)
    for ours, theirs in zip(shapes._modules(), model._modules(), strict=True):
        expected = {name: weight.shape for name, weight in theirs.state_dict().items()}
        assert {name: weight.shape for name, weight in ours.state_dict().items()} == expected
        assert {weight.device.type for weight in ours.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 32, 48), r"data.frames 16: CogVideoX makes 8n\+1 frames; the nearest are 9 or 17"),
        ((13, 32, 48), r"data.frames 13: .* the nearest are 9 or 17"),
        ((9, 40, 48), "data.height 40: CogVideoX makes multiples of 16; the nearest are 32 or 48"),
        ((9, 32, 8), "data.width 8: CogVideoX makes multiples of 16; the nearest are 16"),
    ],
)
def test_clips_that_it_cannot_make_are_refused(tiny_cog, size, message):
    with pytest.raises(ModelError, match=f"^{message}"):
        load(tiny_cog, device="meta", parts=("vae",)).latent_shape(*size)


def test_an_even_number_of_latent_frames_is_refused_for_a_reason(model):
    """13 frames become four latent frames, and these 16 frames."""
    z = model._vae.encode(torch.zeros(1, 3, 13, 32, 48)).latent_dist.mean
    assert z.shape[2] == 4
    assert model._vae.decode(z).sample.shape[2] == 16


def test_cogvideox_15_is_refused(folder):
    change(folder / "transformer" / "config.json", patch_size_t=2)
    with pytest.raises(ModelError, match="patch_size_t 2, as CogVideoX 1.5 has; model.path may be") as error:
        load(folder, device="meta", parts=("vae",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_part_without_weights_is_refused(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    file.unlink()
    for options in ({}, {"device": "meta"}):
        with pytest.raises(ModelError, match=f"'{part}' can't be loaded"):
            load(folder, **options)


def test_a_tokenizer_without_its_file_is_refused(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"'tokenizer' holds no vocabulary; it needs tokenizer.json or spiece.model"):
        load(folder, parts=("text",))
    (folder / "tokenizer" / "spiece.model").write_bytes(b"what transformers can't read")
    with pytest.raises(ModelError, match=r"'tokenizer' can't be loaded.*pip install sentencepiece"):
        load(folder, parts=("text",))
