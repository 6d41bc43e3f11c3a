"""A model as shapes: what a driver asks of it costs no weights, and its files are looked through all the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from rayvideo import models, sections
from rayvideo.models import ModelError
from rayvideo.models.lora import add_lora, lora_parameters, pairs
from tests import tiny

PARTS = ("unet", "vae", "text_encoder")


def load_model(*arguments: Any, **options: Any) -> Any:
    """Not typed, because these tests look at what the only family there is keeps to itself."""
    return models.load_model(*arguments, **options)


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline that a test may spoil."""
    return shutil.copytree(tiny_pipeline, tmp_path / "pipeline")


def weights_of(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def empty(file: Path) -> None:
    """Leave a file of weights its header and its length; what it holds is a hole."""
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    with file.open("wb") as out:
        out.write(content[:header])
        out.truncate(len(content))


def test_sizes_and_names_are_those_of_the_whole_model(tiny_pipeline):
    whole, shapes = load_model(tiny_pipeline), load_model(tiny_pipeline, device="meta")
    assert shapes.latent_shape(16, 64, 128) == whole.latent_shape(16, 64, 128)
    assert (*shapes.prompt_shape,) == whole.encode_prompts(["red cat"]).shape[1:]
    assert shapes.prompt_width == shapes.prompt_shape[1]
    for ours, theirs in ((shapes.denoiser, whole.denoiser), (shapes._text_encoder, whole._text_encoder)):
        expected = {name: weight.shape for name, weight in theirs.state_dict().items()}
        assert {name: weight.shape for name, weight in ours.state_dict().items()} == expected
    adapted = [add_lora(model.denoiser, sections.Lora(rank=3), seed=0) for model in (whole, shapes)]
    assert pairs(adapted[0]) == pairs(adapted[1])
    assert [w.shape for w in lora_parameters(adapted[0]).values()] == [
        w.shape for w in lora_parameters(adapted[1]).values()
    ]


def test_files_without_content_do(folder):
    for part in PARTS:
        empty(weights_of(folder, part))
    model = load_model(folder, device="meta")
    assert model.latent_shape(8, 64, 64) == (4, 8, 8, 8)
    assert {weight.device.type for part in model._modules() for weight in part.parameters()} == {"meta"}


def test_a_model_larger_than_this_machine_has_shapes(folder):
    """A text tower of 100 GB, as a file with a hole."""
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config |= {"vocab_size": 500_000_000, "hidden_size": 48}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        tower = CLIPTextModel(CLIPTextConfig(**config))
    header, end = {}, 0
    for name, weight in tower.state_dict().items():
        start, end = end, end + 4 * weight.numel()
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with weights_of(folder, "text_encoder").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 95e9
    assert load_model(folder, device="meta", parts=("text",)).prompt_shape == (tiny.TOKENS, 48)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("harm", ["lacks", "misfits"])
def test_a_tensor_that_lacks_or_misfits_is_named(folder, part, harm):
    file = weights_of(folder, part)
    weights = load_file(file)
    name = sorted(weights)[len(weights) // 2]
    if harm == "lacks":
        del weights[name]
    else:
        weights[name] = torch.zeros(*weights[name].shape, 2)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"'{part}' lacks or misfits 1 tensors, such as .*{name[-20:]}"):
        load_model(folder, device="meta")


@pytest.mark.parametrize("part", PARTS)
def test_files_that_are_cut_off_or_gone_are_refused(folder, part):
    file = weights_of(folder, part)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"'{part}' can't be loaded: .*{file.name} can't be read; is it complete"):
        load_model(folder, device="meta")
    file.unlink()
    with pytest.raises(ModelError, match=f"'{part}' can't be loaded: .* holds no weights"):
        load_model(folder, device="meta")


def test_shards_and_pickles_are_looked_through(folder):
    file = weights_of(folder, "unet")
    weights = load_file(file)
    names = sorted(weights)
    file.unlink()
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, own in shards.items():
        save_file({name: weights[name] for name in own}, file.parent / shard, metadata={"format": "pt"})
    places = {name: shard for shard, own in shards.items() for name in own}
    index = file.parent / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    torch.save(load_file(weights_of(folder, "vae")), folder / "vae" / "diffusion_pytorch_model.bin")
    weights_of(folder, "vae").unlink()
    whole, shapes = load_model(folder), load_model(folder, device="meta")
    assert shapes.denoiser.state_dict().keys() == whole.denoiser.state_dict().keys()

    (file.parent / next(iter(shards))).unlink()
    with pytest.raises(ModelError, match=r"'unet' can't be loaded: .*-00001-of-00002\.safetensors is not a file"):
        load_model(folder, device="meta", parts=("denoiser",))
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json is no list of files of weights"):
        load_model(folder, device="meta", parts=("denoiser",))
    pickled = torch.load(folder / "vae" / "diffusion_pytorch_model.bin")
    del pickled["encoder.conv_in.bias"]
    torch.save(pickled, folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"'vae' lacks or misfits 1 tensors, such as encoder\.conv_in\.bias"):
        load_model(folder, device="meta", parts=("vae",))


def test_names_of_former_releases_are_known(folder):
    """Stable Diffusion's VAE, as it was published, calls its attention's layers by other names."""
    file = weights_of(folder, "vae")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, old in former.items():
        weights = {name.replace(f".{new}.", f".{old}."): weight for name, weight in weights.items()}
    assert any(".query." in name for name in weights)
    save_file(weights, file, metadata={"format": "pt"})
    load_model(folder, parts=("vae",))
    load_model(folder, device="meta", parts=("vae",))


def rename(folder: Path, variant: str, dtype: torch.dtype) -> None:
    """Leave each part's weights as one variant alone."""
    for part in PARTS:
        file = weights_of(folder, part)
        weights = {name: weight.to(dtype) for name, weight in load_file(file).items()}
        save_file(weights, file.with_suffix(f".{variant}.safetensors"), metadata={"format": "pt"})
        file.unlink()


def test_a_folder_of_one_variant_loads_in_the_wanted_format(folder, tiny_pipeline):
    rename(folder, "fp16", torch.float16)
    model, plain = load_model(folder), load_model(tiny_pipeline)
    for ours, theirs in zip(model._modules(), plain._modules(), strict=True):
        for name, weight in theirs.state_dict().items():
            found = ours.state_dict()[name]
            assert found.dtype == weight.dtype
            assert torch.equal(found, weight.half().to(weight.dtype) if weight.is_floating_point() else weight)
    assert load_model(folder, dtype=torch.bfloat16, parts=("denoiser",)).denoiser.dtype == torch.bfloat16
    assert load_model(folder, device="meta").latent_shape(1, 64, 64) == (4, 1, 8, 8)


def test_a_variant_in_shards_loads_as_the_libraries_write_it(folder, tiny_pipeline):
    plain = load_model(tiny_pipeline)
    for part, module in zip(("unet", "vae", "text_encoder"), plain._modules(), strict=True):
        weights_of(folder, part).unlink()
        module.to(torch.bfloat16).save_pretrained(folder / part, variant="bf16", max_shard_size="20KB")
        assert list((folder / part).glob("*.safetensors.index.bf16.json"))
    for ours, theirs in zip(load_model(folder)._modules(), plain._modules(), strict=True):
        assert all(torch.equal(w, theirs.state_dict()[name].float()) for name, w in ours.state_dict().items())
    load_model(folder, device="meta")


def test_plain_weights_come_before_a_variant(folder, tiny_pipeline):
    file = weights_of(folder, "vae")
    zeros = {name: torch.zeros_like(weight) for name, weight in load_file(file).items()}
    save_file(zeros, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    model, plain = (load_model(path, parts=("vae",)) for path in (folder, tiny_pipeline))
    assert torch.equal(model._vae.encoder.conv_in.weight, plain._vae.encoder.conv_in.weight)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_several_variants_without_plain_weights_are_refused(folder, device):
    file = weights_of(folder, "unet")
    shutil.copy(file, file.with_suffix(".ema.safetensors"))
    file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.raises(ModelError, match="'unet' holds several variants of its weights, ema, fp16, and no plain ones"):
        load_model(folder, device=device)


@pytest.mark.parametrize(
    "kind",
    ["DPMSolverMultistepScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"],
)
def test_a_scheduler_of_another_class_is_refused_by_its_name(folder, kind):
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, kind)().save_pretrained(folder / "scheduler")
    with pytest.raises(ModelError, match=f"its scheduler is a {kind}; allowed is a DDIMScheduler") as caught:
        load_model(folder, parts=())
    assert "clip_sample" not in str(caught.value)


def test_what_the_document_says_of_other_schedulers_makes_them_load(folder, tiny_pipeline):
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "DDIMScheduler" in block)
    written = DDIMScheduler.load_config(tiny_pipeline, subfolder="scheduler")
    DPMSolverMultistepScheduler.from_config(written).save_pretrained(folder / "scheduler")
    exec(code.replace("models/mine", str(folder)), {})
    ours, theirs = (load_model(path, parts=()).scheduler for path in (folder, tiny_pipeline))
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.final_alpha_cumprod == theirs.final_alpha_cumprod
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    assert torch.equal(ours.timesteps, theirs.timesteps)


def test_a_default_that_stands_in_no_file_is_told_as_one(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["clip_sample"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"clip_sample=True \(DDIMScheduler's default: it is not set\)"):
        load_model(folder, parts=())
