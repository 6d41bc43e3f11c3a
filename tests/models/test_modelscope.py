import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, UNet3DConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from rayvideo import editing, sections
from rayvideo.models import ModelError, load_model, modelscope
from rayvideo.models.lora import add_lora, lora_parameters

PROMPTS = ["red cat", "a dog jumps"]


@pytest.fixture(scope="module")
def model(tiny_pipeline):
    return load_model(tiny_pipeline)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    return DiffusionPipeline.from_pretrained(tiny_pipeline)


@pytest.fixture
def tuned(tiny_pipeline):
    """A model with an adapter that already does something."""
    model = load_model(tiny_pipeline)
    model.denoiser = add_lora(model.denoiser, sections.Lora(), seed=0)
    torch.manual_seed(0)
    for weight in lora_parameters(model.denoiser).values():
        torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline that a test may spoil."""
    return shutil.copytree(tiny_pipeline, tmp_path / "pipeline")


def conditioning(model):
    return torch.cat([model.encode_prompts([""] * 2), model.encode_prompts(PROMPTS)])


def rollout(model, start, **options):
    """Latents after two DDIM steps with guidance."""
    embeds = conditioning(model)
    predict = editing.guided(lambda latents, t: model.predict(latents, t, embeds), 3.0)
    return editing.denoise(predict, start, model.scheduler, editing.timesteps(model.scheduler, 20, 0.1), **options)


def test_a_loaded_model_is_frozen_and_without_dropout(model):
    for part in (model.denoiser, model._vae, model._text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_prompts_are_embedded_as_the_pipeline_does(model, pipeline):
    prompts = ["red cat", "", "a caption with far more characters than the text tower has places for them"]
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert theirs.shape == (3, 48, 32)
    torch.testing.assert_close(model.encode_prompts(prompts), theirs)


def test_the_chain_from_pure_noise_equals_the_pipeline(model, pipeline):
    start = torch.randn(2, 4, 3, 8, 8)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=3.0, num_frames=3, latents=start, output_type="latent"
    ).frames
    embeds = conditioning(model)
    predict = editing.guided(lambda latents, t: model.predict(latents, t, embeds), 3.0)
    ours = editing.denoise(predict, start, model.scheduler, editing.timesteps(model.scheduler, 5), grad_steps=0)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_frames_are_encoded_one_by_one(model):
    frames = torch.rand(2, 3, 3, 64, 64)
    posterior = model.encode_frames(frames)
    alone = model._vae.encode(frames[1, 2][None] * 2 - 1).latent_dist
    torch.testing.assert_close(posterior.mean[1, :, 2], alone.mean[0])
    torch.testing.assert_close(posterior.logvar[1, :, 2], alone.logvar[0])
    assert posterior.mean.shape == (2, *model.latent_shape(3, 64, 64))


def test_a_sample_is_scaled_for_the_denoiser(model):
    posterior = model.posterior(torch.full((1, 4, 2, 8, 8), 2.0), torch.full((1, 4, 2, 8, 8), 0.5).log() * 2)
    noise = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    sample = posterior.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, 0.18215 * (2 + 0.5 * noise))


def test_the_scaling_factor_is_applied_as_it_always_was_bit_for_bit(model):
    mean, logvar = torch.randn(2, 2, 4, 3, 8, 8).unbind()
    posterior, factor = model.posterior(mean, logvar), model._vae.config.scaling_factor
    noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    plain = factor * (mean + torch.exp(0.5 * logvar) * noise)
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(3)), plain)
    assert torch.equal(posterior.mode(), factor * mean)
    latents = plain.clone().requires_grad_()
    frames = model.decode_frames(latents)
    plain.requires_grad_()
    decoded = model._vae.decode(plain.transpose(1, 2).flatten(0, 1) / factor).sample.unflatten(0, (2, 3)) * 0.5 + 0.5
    assert torch.equal(frames, decoded)
    gradients = [torch.autograd.grad(f.square().sum(), x)[0] for f, x in ((frames, latents), (decoded, plain))]
    assert torch.equal(*gradients)


def test_a_context_changes_nothing_and_only_chosen_frames_are_decoded(model):
    latents, indices = torch.randn(2, 4, 5, 8, 8), torch.tensor([[0, 3, 4], [1, 2, 4]])
    assert torch.equal(model.decode_frames(latents, indices, context=0), model.decode_frames(latents, indices))
    assert model.frames_to_decode(indices, 5) == 6


def test_latents_are_decoded_as_the_pipeline_does(model, pipeline):
    latents = torch.randn(2, 4, 3, 8, 8)
    theirs = pipeline.decode_latents(latents).transpose(1, 2) * 0.5 + 0.5
    torch.testing.assert_close(model.decode_frames(latents), theirs)


def test_decoding_only_the_judged_frames_gives_the_same_loss_and_gradients(tuned):
    start = torch.randn(2, 4, 8, 8, 8)
    indices = torch.tensor([[1, 6], [0, 7]])
    target = torch.rand(2, 2, 3, 64, 64)
    results = []
    for chosen_only in (True, False):
        latents = rollout(tuned, start)
        if chosen_only:
            frames = tuned.decode_frames(latents, indices)
        else:
            frames = tuned.decode_frames(latents)[torch.arange(2)[:, None], indices]
        loss = (frames - target).square().mean()
        gradients = torch.autograd.grad(loss, list(lora_parameters(tuned.denoiser).values()))
        results.append((loss, torch.cat([g.flatten() for g in gradients])))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0, rtol=1e-5)
    error = (results[0][1] - results[1][1]).norm() / results[1][1].norm()
    assert error < 1e-4


def test_only_the_adapter_receives_gradients(tuned):
    tuned.decode_frames(rollout(tuned, torch.randn(2, 4, 4, 8, 8))).sum().backward()
    adapter = lora_parameters(tuned.denoiser)
    assert all("lora_" in name for name in adapter)
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in adapter.values())
    for part in (tuned.denoiser, tuned._vae, tuned._text_encoder):
        frozen = [p for name, p in part.named_parameters() if "lora_" not in name]
        assert frozen
        assert all(p.grad is None for p in frozen)


def test_block_checkpointing_changes_no_bit_and_saves_memory(tuned):
    start = torch.randn(2, 4, 4, 8, 8)
    weights = list(lora_parameters(tuned.denoiser).values())
    results, held = [], []
    for enable in (False, True):
        if enable:
            tuned.enable_checkpointing()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            frames = tuned.decode_frames(rollout(tuned, start, checkpoint=False))
        held.append(sum(event.self_cpu_memory_usage for event in profiler.events()))
        results.append((frames, *torch.autograd.grad(frames.square().sum(), weights)))
    for without, with_checkpointing in zip(*results, strict=True):
        assert torch.equal(without, with_checkpointing)
    assert held[1] < held[0] / 3


def test_the_recomputed_blocks_are_those_of_four_classes(tuned):
    kinds = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
    with torch.device("meta"):
        unets = [tuned.denoiser, UNet3DConditionModel()]
    for unet in unets:
        found = modelscope.blocks(unet)
        assert len(found) == len(set(found))
        assert set(found) == {module for module in unet.modules() if isinstance(module, kinds)}
        assert {type(block) for block in found} == set(kinds)


def test_a_bf16_denoiser_takes_and_gives_fp32_latents(model, tiny_pipeline):
    half = load_model(tiny_pipeline, dtype=torch.bfloat16)
    latents, step, embeds = torch.randn(2, 4, 3, 8, 8), torch.tensor(551), model.encode_prompts(PROMPTS)
    noise = half.predict(latents, step, embeds)
    assert half.denoiser.dtype == torch.bfloat16
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, model.predict(latents, step, embeds), atol=0.05, rtol=0.05)
    assert half.encode_prompts(PROMPTS).dtype == torch.float32
    assert half.decode_frames(latents).dtype == torch.float32


def test_a_part_that_was_not_loaded_is_named(tiny_pipeline):
    model = load_model(tiny_pipeline, parts=["vae"])
    model.encode_frames(torch.rand(1, 1, 3, 64, 64))
    with pytest.raises(ModelError, match="'text'"):
        model.encode_prompts(["cat"])
    with pytest.raises(ModelError, match="'denoiser'"):
        model.predict(torch.zeros(1, 4, 1, 8, 8), torch.tensor(1), torch.zeros(1, 48, 32))


def test_frames_that_the_vae_cannot_halve_are_refused(model):
    assert model.latent_shape(16, 64, 128) == (4, 16, 8, 16)
    with pytest.raises(ModelError, match="60x64 pixels.*multiples of 8"):
        model.latent_shape(16, 60, 64)


def test_a_pipeline_of_another_family_is_refused(folder):
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LTXPipeline"}))
    known = "TextToVideoSDPipeline, CogVideoXPipeline, WanPipeline"
    with pytest.raises(ModelError, match=f"'LTXPipeline'; known pipelines: {known}"):
        load_model(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    removed = sorted(weights)[len(weights) // 2]
    del weights[removed]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"'{part}' lacks or misfits 1 tensors"):
        load_model(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_truncated_checkpoint_is_refused(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"'{part}' can't be loaded"):
        load_model(folder)


@pytest.mark.parametrize(("key", "value"), [("prediction_type", "v_prediction"), ("clip_sample", True)])
def test_a_schedule_that_the_chain_does_not_follow_is_refused(folder, key, value):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=f"{key}={value!r}"):
        load_model(folder)
