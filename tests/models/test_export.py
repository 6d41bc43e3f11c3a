"""What other programs load computes what the adapter does here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import TextToVideoSDPipeline, UNet3DConditionModel
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from rayvideo import sections
from rayvideo.errors import UserError
from rayvideo.models import ModelError, export, load_model, vgen
from rayvideo.models.adapter import read_adapter
from rayvideo.models.lora import WEIGHTS, add_lora, load_adapter, lora_parameters, save_adapter
from rayvideo.weights import WeightsError
from tests.models import reference

HEAD_DIM = reference.SMALL.head_dim
LATENTS, TIMES = torch.linspace(-2, 2, 2 * 4 * 3 * 8 * 8).view(2, 4, 3, 8, 8), torch.tensor([551, 1])


@torch.no_grad()
def output(unet, width=32):
    """Predicted noise for fixed latents."""
    text = torch.linspace(-1, 1, 2 * 5 * width).view(2, 5, width)
    return getattr(noise := unet(LATENTS, TIMES, text), "sample", noise)


def tune(pipeline, folder, **options):
    """Write an adapter that does something; its output."""
    tuned = add_lora(load_model(pipeline, parts=["denoiser"]).denoiser, sections.Lora(**options), seed=0)
    torch.manual_seed(3)
    for weight in lora_parameters(tuned).values():
        torch.nn.init.normal_(weight, std=0.1)
    save_adapter(tuned, folder)
    return output(tuned)


@pytest.fixture(scope="module")
def adapter(tiny_pipeline, tmp_path_factory):
    """Adapter of rank 2 and scale 3, and what the tiny model predicts with it."""
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    return folder, tune(tiny_pipeline, folder, rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A VGen checkpoint with LoRA, its network, and what `convert` made of it."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(0)
    network = reference.UNet(lora=True).eval()
    torch.save({"state_dict": network.state_dict(), "step": 1}, folder / "vgen.pth")
    vgen.convert(unet=folder / "vgen.pth", out=folder / "model", head_dim=HEAD_DIM)
    return folder / "model", network


def test_diffusers_loads_the_lora_as_the_document_says(tiny_pipeline, adapter, tmp_path):
    folder, wanted = adapter
    export.export_diffusers(folder, tmp_path / "lora.safetensors")
    page = Path(__file__).parents[2].joinpath("docs", "checkpoints.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LoraUNet" in block)
    for shown, real in {
        "models/vgen-release": tiny_pipeline,
        "lora.safetensors": tmp_path / "lora.safetensors",
    }.items():
        assert shown in code
        code = code.replace(shown, str(real))
    names = {kind.__name__: kind for kind in (UNet3DConditionModel, PeftAdapterMixin, TextToVideoSDPipeline)}
    exec(code, names)
    torch.testing.assert_close(output(names["pipe"].unet), wanted, atol=2e-5, rtol=1e-4)


def test_kohya_keys_are_the_ones_that_diffusers_would_write(adapter, tmp_path):
    folder, _ = adapter
    export.export_kohya(folder, tmp_path / "lora.safetensors")
    ours = load_file(tmp_path / "lora.safetensors")
    peft = load_file(folder / "adapter_model.safetensors")
    theirs = convert_state_dict_to_kohya({name.replace("base_model.model", "unet"): w for name, w in peft.items()})
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("lora_unet_transformer_in_transformer_blocks_0_attn1_to_out_0.") for key in ours)
    for name, tensor in ours.items():
        if name.endswith(".alpha"):
            assert tensor.item() == 6.0
        else:
            assert torch.equal(tensor, theirs[name])


def test_merged_weights_need_no_lora(tiny_pipeline, adapter, tmp_path):
    folder, wanted = adapter
    export.export_merged(tiny_pipeline, folder, tmp_path / "unet")
    merged = UNet3DConditionModel.from_pretrained(tmp_path / "unet")
    torch.testing.assert_close(output(merged), wanted, atol=2e-5, rtol=1e-4)


def test_a_vgen_checkpoint_comes_back_bit_for_bit(release, tmp_path):
    model, network = release
    export.export_vgen(model, tmp_path / "tuned.pth", adapter=model / "adapter")
    export.export_vgen(model, tmp_path / "base.pth")
    tuned, base = (torch.load(tmp_path / name)["state_dict"] for name in ("tuned.pth", "base.pth"))
    theirs = network.state_dict()
    assert tuned.keys() == theirs.keys()
    assert base.keys() == {name for name in theirs if "_lora." not in name}
    for found in (tuned, base):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())


def test_a_folder_comes_back_bit_for_bit(release, tmp_path):
    model, _ = release
    export.export_vgen(model, tmp_path / "tuned.pth", adapter=model / "adapter")
    vgen.convert(unet=tmp_path / "tuned.pth", out=tmp_path / "again", head_dim=HEAD_DIM)
    for file in ("unet/diffusion_pytorch_model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = load_file(model / file), load_file(tmp_path / "again" / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_vgen_runs_the_merged_checkpoint_without_lora(release, tmp_path):
    model, network = release
    export.export_vgen(model, tmp_path / "merged.pth", adapter=model / "adapter", merge=True)
    plain = reference.UNet().eval()
    plain.load_state_dict(torch.load(tmp_path / "merged.pth")["state_dict"])
    torch.testing.assert_close(output(plain, 24), output(network, 24), atol=2e-5, rtol=1e-4)


def test_vgen_knows_no_alpha_so_the_scale_goes_into_the_matrix(release, tmp_path):
    model, _ = release
    shutil.copytree(model / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8.0}))
    export.export_vgen(model, tmp_path / "scaled.pth", adapter=tmp_path / "adapter")
    network = reference.UNet(lora=True).eval()
    network.load_state_dict(torch.load(tmp_path / "scaled.pth")["state_dict"])
    ours = load_adapter(UNet3DConditionModel.from_pretrained(model / "unet"), tmp_path / "adapter")
    torch.testing.assert_close(output(ours, 24), output(network, 24), atol=2e-5, rtol=1e-4)


def test_an_adapter_that_vgen_has_no_place_for_is_refused(release, tmp_path):
    model, _ = release
    unet = UNet3DConditionModel.from_pretrained(model / "unet")
    save_adapter(add_lora(unet, sections.Lora(targets=("to_q",)), seed=0), tmp_path / "adapter")
    with pytest.raises(WeightsError, match="as the LoRA of VGen's UNet .*can be merged.* missing"):
        export.export_vgen(model, tmp_path / "vgen.pth", adapter=tmp_path / "adapter")
    with pytest.raises(ModelError, match="nothing to merge"):
        export.export_vgen(model, tmp_path / "vgen.pth", merge=True)
    assert not (tmp_path / "vgen.pth").exists()


@pytest.mark.parametrize("key", ["use_dora", "use_rslora", "rank_pattern"])
def test_more_than_plain_lora_is_refused(adapter, tmp_path, key):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = config | {key: {"to_q": 8} if key == "rank_pattern" else True}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="only plain LoRA"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w, c: w.pop(min(w)), r"lora_B\.weight has no counterpart .*lora_A\.weight"),
        (lambda w, c: c.update(r=4), r"is of rank 2, but adapter_config\.json says r = 4"),
        (lambda w, c: c["target_modules"].append("to_x"), r"no matrices for 'to_x', which adapter_config\.json has"),
        (lambda w, c: c.update(lora_alpha=0), r"lora_alpha 0"),
    ],
)
def test_what_a_reader_would_drop_or_scale_wrongly_is_refused(adapter, tmp_path, spoil, message):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    weights, config = load_file(folder / WEIGHTS), json.loads((folder / "adapter_config.json").read_text())
    spoil(weights, config)
    save_file(weights, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for write in (export.export_diffusers, export.export_kohya):
        with pytest.raises(ModelError, match=message):
            write(folder, tmp_path / "lora.safetensors")
    assert not (tmp_path / "lora.safetensors").exists()


def test_an_untrained_adapter_is_not_exported(release, tmp_path):
    model, _ = release
    unet = UNet3DConditionModel.from_pretrained(model / "unet")
    save_adapter(add_lora(unet, sections.Lora(rank=reference.RANK, alpha=reference.RANK), seed=0), tmp_path / "fresh")
    out = {"out": tmp_path / "lora.safetensors", "adapter": tmp_path / "fresh"}
    for write in (
        lambda: export.export_diffusers(**out),
        lambda: export.export_kohya(**out),
        lambda: export.export_merged(model, **out),
        lambda: export.export_vgen(model, **out),
        lambda: export.export_vgen(model, **out, merge=True),
    ):
        with pytest.raises(ModelError, match="fresh: the adapter is untrained and changes nothing"):
            write()
    assert not (tmp_path / "lora.safetensors").exists()


def test_what_is_no_adapter_is_refused(adapter, tmp_path):
    with pytest.raises(ModelError, match="no adapter that can be read"):
        read_adapter(tmp_path)
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.conv_in.bias": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="it holds base_model.model.conv_in.bias"):
        read_adapter(folder)


def test_lora_goes_to_a_safetensors_file_that_is_not_there_yet(adapter, tmp_path):
    with pytest.raises(ModelError, match="must end in .safetensors"):
        export.export_diffusers(adapter[0], tmp_path / "lora.bin")
    (tmp_path / "lora.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export.export_kohya(adapter[0], tmp_path / "lora.safetensors")


def test_comfyuis_own_names_are_not_for_this_family(adapter, tmp_path):
    with pytest.raises(ModelError, match="ModelScope has no names of ComfyUI's; export it with kohya's"):
        export.export_comfyui(adapter[0], tmp_path / "lora.safetensors")
