"""Wan's parts compute what diffusers' pipeline computes, in the number formats that it wants, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rayvideo import sections
from rayvideo.errors import UserError
from rayvideo.models import ModelError, load_model
from rayvideo.models.experts import Experts
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.models.wan import Wan
from tests import tiny_wan
from tests.models.wan.conftest import Folder, Pipeline

KINDS: tuple[tiny_wan.Kind, ...] = ("2.1", "5B", "A14B")
PROMPTS = ["a red cat", "", "Zebra &amp;amp;  dog\nat   night "]


@pytest.fixture
def folder(wan: Folder, tmp_path: Path) -> Callable[[tiny_wan.Kind], Path]:
    """A copy that a test may spoil."""
    return lambda kind: Path(shutil.copytree(wan(kind), tmp_path / "pipeline"))


def load(*arguments: Any, **options: Any) -> Any:
    """Not typed, because these tests look at what the family keeps to itself."""
    return load_model(*arguments, **options)


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def noise(model: Any, frames: int = 5, clips: int = 2) -> Tensor:
    height = width = 32
    return torch.randn(clips, *model.latent_shape(frames, height, width), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_says_that_it_is_wan(wan: Folder, kind: tiny_wan.Kind) -> None:
    whole, shapes = load(wan(kind)), load(wan(kind), device="meta")
    assert type(whole) is type(shapes) is Wan
    assert isinstance(whole.denoiser, Experts) == (kind == "A14B")
    factor = 16 if kind == "5B" else 8
    assert whole.latent_shape(17, 64, 96) == shapes.latent_shape(17, 64, 96) == (4, 5, 64 // factor, 96 // factor)
    assert whole.prompt_shape == shapes.prompt_shape == (512, tiny_wan.TEXT_WIDTH)
    assert whole.prompt_width == shapes.prompt_width == tiny_wan.TEXT_WIDTH
    assert not any(weight.requires_grad for weight in whole.denoiser.parameters())
    assert {weight.device.type for part in shapes._modules() for weight in part.parameters()} == {"meta"}
    assert len(shapes._modules()) == 3


def test_parts_that_were_not_asked_for_are_told_of(wan: Folder) -> None:
    model = load(wan("2.1"), parts=("text",))
    assert model.encode_prompts(["a cat"]).shape == (1, 512, tiny_wan.TEXT_WIDTH)
    for use in (lambda: model.latent_shape(5, 32, 32), lambda: model.prompt_width, model.enable_checkpointing):
        with pytest.raises(ModelError, match="was loaded without its '(vae|denoiser)' part"):
            use()


@torch.no_grad()
def test_prompts_are_embedded_as_the_pipeline_does(wan: Folder, theirs: Pipeline) -> None:
    model = load(wan("2.1"), parts=("text",))
    long = "a cat jumps over the moon " * 100
    wanted, _ = theirs("2.1").encode_prompt([*PROMPTS, long], None, False, max_sequence_length=512)
    found = model.encode_prompts([*PROMPTS, long])
    assert torch.equal(found, wanted)
    lengths = found.any(dim=2).sum(dim=1)
    assert lengths[1] == 1, "the empty prompt is an end token"
    assert lengths[3] == 512
    assert not found[0, lengths[0] :].any()


@torch.no_grad()
def test_prompts_whose_rows_of_zeros_were_cut_are_filled_up(wan: Folder) -> None:
    model = load(wan("2.1"))
    embeddings, latents, time = model.encode_prompts(["a red cat"] * 2), noise(model), torch.tensor(501.5)
    whole = model.predict(latents, time, embeddings)
    assert torch.equal(model.predict(latents, time, embeddings[:, :9]), whole)
    short: Tensor = model.denoiser(latents, time.expand(2), embeddings[:, :9], return_dict=False)[0]
    assert not torch.allclose(short, whole, atol=1e-3), "the number of rows of zeros matters"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["2.1", "5B"])
def test_frames_are_encoded_as_the_vae_does(wan: Folder, theirs: Pipeline, kind: tiny_wan.Kind) -> None:
    model, vae = load(wan(kind), parts=("vae",)), theirs(kind).vae
    frames = torch.rand(2, 9, 3, 64, 64)
    wanted = vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist
    posterior = model.encode_frames(frames)
    assert torch.equal(posterior.mean, wanted.mean)
    assert torch.equal(posterior.logvar, wanted.logvar)
    assert posterior.mean.shape[1:] == model.latent_shape(9, 64, 64)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (tiny_wan.MEAN, tiny_wan.STD))
    torch.testing.assert_close(posterior.mode(), (wanted.mean - mean) / std)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["2.1", "5B"])
def test_predictions_are_the_transformers(wan: Folder, theirs: Pipeline, kind: tiny_wan.Kind) -> None:
    model, transformer = load(wan(kind)), theirs(kind).transformer
    latents, embeddings, times = noise(model), model.encode_prompts(PROMPTS[:2]), torch.tensor([982.77, 138.7])
    wanted = transformer(latents, times, embeddings).sample
    assert torch.equal(model.predict(latents, times, embeddings), wanted)
    one = model.predict(latents, times[0], embeddings)
    torch.testing.assert_close(one[:1], wanted[:1], atol=1e-6, rtol=1e-5)
    assert not torch.equal(one, model.predict(latents, times[0].trunc(), embeddings)), "timesteps are not cut off"


@torch.no_grad()
def test_one_timestep_a_clip_is_the_same_as_one_a_token(wan: Folder, theirs: Pipeline) -> None:
    model, transformer = load(wan("5B")), theirs("5B").transformer
    latents, embeddings, time = noise(model), model.encode_prompts(PROMPTS[:2]), torch.tensor(731.25)
    tokens = latents[0, 0, :, ::2, ::2].numel()
    wanted = transformer(latents, time.expand(2, tokens), embeddings).sample
    torch.testing.assert_close(model.predict(latents, time, embeddings), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_expert_denoises_on_its_side_of_the_boundary(wan: Folder, theirs: Pipeline) -> None:
    model, pipeline = load(wan("A14B")), theirs("A14B")
    latents, embeddings = noise(model), model.encode_prompts(PROMPTS[:2])
    for time, expert in {875.0: pipeline.transformer, 874.9: pipeline.transformer_2}.items():
        times = torch.tensor([time, time])
        assert torch.equal(model.predict(latents, times, embeddings), expert(latents, times, embeddings).sample)


@pytest.mark.parametrize("kind", ["2.1", "A14B"])
def test_layers_that_must_stay_in_fp32_do(wan: Folder, kind: tiny_wan.Kind) -> None:
    model = load(wan(kind), dtype=torch.bfloat16, parts=("denoiser", "vae"), device="cpu")
    assert model.dtype is torch.bfloat16
    kept = {name for name, weight in model.denoiser.named_parameters() if weight.dtype is torch.float32}
    assert len(kept) == 11 * (2 if kind == "A14B" else 1)
    assert all(any(part in name for part in ("time_embedder", "scale_shift_table", "norm2")) for name in kept)
    assert {weight.dtype for weight in model._vae.parameters()} == {torch.float32}
    adapted = add_lora(model.denoiser, sections.Lora(), seed=0)
    assert {weight.dtype for weight in lora_parameters(adapted).values()} == {torch.float32}
    model.denoiser = adapted
    predicted = model.predict(noise(model), torch.tensor(300.0), torch.randn(2, 512, tiny_wan.TEXT_WIDTH))
    assert predicted.dtype is torch.float32
    predicted.sum().backward()
    gradients = [weight.grad for name, weight in lora_parameters(adapted).items() if ".high." not in name]
    assert all(gradient is not None and gradient.dtype is torch.float32 for gradient in gradients)


def test_checkpointing_of_the_denoiser_changes_no_bit(wan: Folder) -> None:
    results = []
    for again in (False, True):
        model = load(wan("A14B"), parts=("denoiser", "vae"))
        if again:
            model.enable_checkpointing()
            assert all(expert.gradient_checkpointing for expert in (model.denoiser.high, model.denoiser.low))
        latents = noise(model).requires_grad_()
        out = model.predict(latents, torch.tensor(300.0), torch.ones(2, 512, tiny_wan.TEXT_WIDTH))
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), latents)[0]))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fp16_is_refused(wan: Folder, device: str) -> None:
    with pytest.raises(ModelError, match="^training.precision 'fp16': .* allowed: 'bf16', 'fp32'$"):
        load(wan("2.1"), dtype=torch.float16, device=device)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 64, 64), r"^data\.frames 16: this model makes 4n\+1 frames; the nearest are 13 or 17$"),
        ((0, 64, 64), r"^data\.frames 0: .* the nearest are 1$"),
        ((17, 60, 64), r"^data\.height 60: this model makes multiples of 16; the nearest are 48 or 64$"),
        ((17, 64, 8), r"^data\.width 8: .* the nearest are 16$"),
    ],
)
def test_clips_of_other_sizes_are_refused(wan: Folder, size: tuple[int, int, int], message: str) -> None:
    model = load(wan("2.1"), device="meta", parts=("vae",))
    with pytest.raises(ModelError, match=message):
        model.latent_shape(*size)


def test_the_5b_models_grid_is_coarser(wan: Folder) -> None:
    model = load(wan("5B"), device="meta", parts=("vae",))
    with pytest.raises(ModelError, match=r"^data\.width 48: .* multiples of 32; the nearest are 32 or 64$"):
        model.latent_shape(17, 64, 48)


def test_frames_that_do_not_fit_are_not_encoded_in_part(wan: Folder) -> None:
    model = load(wan("2.1"), parts=("vae",))
    with pytest.raises(ModelError, match=r"^data\.frames 8: "):
        model.encode_frames(torch.rand(1, 8, 3, 32, 32))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("harm", ["the index", "the files"])
def test_a_model_without_its_second_expert_is_refused(folder: Folder, device: str, harm: str) -> None:
    path = folder("A14B")
    if harm == "the index":
        change(path, "model_index.json", transformer_2=[None, None])
        message = r"^model\.path: .* has boundary_ratio 0\.875 in model_index\.json, .* but no 'transformer_2'"
    else:
        shutil.rmtree(path / "transformer_2")
        message = "'transformer_2' can't be loaded"
    with pytest.raises(ModelError, match=message) as error:
        load(path, device=device, parts=("denoiser",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ratio", [None, 875, "0.875", 0])
def test_two_experts_without_a_boundary_are_refused(folder: Folder, ratio: object) -> None:
    path = folder("A14B")
    change(path, "model_index.json", boundary_ratio=ratio)
    with pytest.raises(ModelError, match=r"^model\.path: .* between 0 and 1, for Wan 2\.2 T2V-A14B 0\.875$"):
        load(path, device="meta", parts=("denoiser",))


def test_a_tokenizer_without_its_file_is_refused(folder: Folder) -> None:
    path = folder("2.1")
    (path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"'tokenizer' holds no vocabulary; it needs tokenizer\.json or spiece\.model$"
    ):
        load(path, device="meta", parts=("text",))
    shutil.rmtree(path / "tokenizer")
    with pytest.raises(ModelError, match="'tokenizer' can't be loaded") as error:
        load(path, device="meta", parts=("text",))
    assert "\n" not in str(error.value)


def test_schedulers_of_flows_load_and_others_are_refused(folder: Folder) -> None:
    path = folder("2.1")
    assert load(path, parts=()).schedule.chain(20).levels[0] == 1
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(path / "scheduler")
    assert type(load(path, parts=()).scheduler) is FlowMatchEulerDiscreteScheduler
    DDIMScheduler().save_pretrained(path / "scheduler")
    with pytest.raises(UserError, match="DDIMScheduler is no scheduler of a flow"):
        load(path, parts=())
    change(path, "scheduler/scheduler_config.json", _class_name="Newest")
    with pytest.raises(ModelError, match="'scheduler' is a Newest, which this diffusers .* does not have"):
        load(path, parts=())
