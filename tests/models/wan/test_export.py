"""Adapters for Wan in other programs' formats: what diffusers loads of them computes what the tuned model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayvideo import cli, sections
from rayvideo.models import ModelError, export, load_model
from rayvideo.models.lora import add_lora, lora_parameters, save_adapter
from rayvideo.models.wan import Wan
from rayvideo.models.wan.names import original_name
from tests import tiny_wan
from tests.documents import block_of
from tests.models.wan.conftest import Folder

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
HIGH, LOW = 900.0, 300.0


@torch.no_grad()
def output(network: nn.Module, time: float = LOW) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, tiny_wan.CHANNELS, 2, 4, 4, generator=generator)
    text = torch.randn(1, 512, tiny_wan.TEXT_WIDTH, generator=generator)
    found: Tensor = network(latents, torch.tensor([time]), text, return_dict=False)[0]
    return found


def tune(path: Path, folder: Path, **options: Any) -> nn.Module:
    """Write an adapter of rank 2 and scale 3 that does something; the tuned denoiser."""
    given = {"rank": 2, "alpha": 6.0, "targets": TARGETS}
    tuned = add_lora(load_model(path, parts=("denoiser",)).denoiser, sections.Lora(**given | options), seed=0)
    torch.manual_seed(3)
    for weight in lora_parameters(tuned).values():
        nn.init.normal_(weight, std=0.1)
    save_adapter(tuned, folder)
    return tuned


def bound(network: nn.Module) -> int:
    """How many of the network's layers have got a pair."""
    return sum(isinstance(layer, LoraLayer) for layer in network.modules())


def pipeline(path: Path) -> WanPipeline:
    loaded: WanPipeline = WanPipeline.from_pretrained(path)
    return loaded


@pytest.mark.parametrize("write", [export.export_diffusers, export.export_comfyui, export.export_kohya])
@pytest.mark.parametrize("named", [False, True])
def test_diffusers_loads_it_and_every_key_binds(wan: Folder, tmp_path: Path, write: Any, named: bool) -> None:
    path, file = wan("2.1"), tmp_path / "lora.safetensors"
    wanted = output(tune(path, tmp_path / "adapter"))
    family = export.family_for(path, tmp_path / "adapter") if named else None
    assert write(tmp_path / "adapter", file, family) == [str(file)]
    theirs = pipeline(path)
    plain = output(theirs.transformer)
    theirs.load_lora_weights(str(file))
    matrices = [name for name in load_file(file) if not name.endswith(".alpha")]
    assert 2 * bound(theirs.transformer) == len(matrices) == 2 * 2 * 10
    torch.testing.assert_close(output(theirs.transformer), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-2)


def test_a_prefix_of_another_family_would_bind_nothing_and_not_say_so(wan: Folder, tmp_path: Path) -> None:
    """Why the family names the prefix."""
    tune(wan("2.1"), tmp_path / "adapter")
    export.export_diffusers(tmp_path / "adapter", tmp_path / "right.safetensors")
    tensors = load_file(tmp_path / "right.safetensors")
    assert all(name.startswith("transformer.blocks.") for name in tensors)
    wrong = {name.replace("transformer.", "unet.", 1): tensor for name, tensor in tensors.items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    theirs = pipeline(wan("2.1"))
    theirs.load_lora_weights(str(tmp_path / "wrong.safetensors"))
    assert bound(theirs.transformer) == 0


def test_comfyuis_names_are_those_of_wans_own_code(wan: Folder, tmp_path: Path) -> None:
    tune(wan("2.1"), tmp_path / "adapter")
    export.export_comfyui(tmp_path / "adapter", tmp_path / "lora.safetensors")
    names = {name.rsplit(".", 2)[0] for name in load_file(tmp_path / "lora.safetensors")}
    kinds = {name.removeprefix("diffusion_model.blocks.0.") for name in names if ".blocks.0." in name}
    assert kinds == {
        *(f"{attention}.{matrix}" for attention in ("self_attn", "cross_attn") for matrix in "qkvo"),
        "ffn.0",
        "ffn.2",
    }


@pytest.mark.parametrize("write", [export.export_diffusers, export.export_comfyui])
def test_each_experts_file_goes_to_its_transformer(wan: Folder, tmp_path: Path, write: Any) -> None:
    path = wan("A14B")
    tuned = tune(path, tmp_path / "adapter")
    with pytest.raises(ModelError, match="a denoiser of class Experts, .* --model"):
        write(tmp_path / "adapter", tmp_path / "lora.safetensors")
    family = export.family_for(path, tmp_path / "adapter")
    assert family is Wan
    high, low = write(tmp_path / "adapter", tmp_path / "lora.safetensors", family)
    theirs = pipeline(path)
    code = block_of("docs/checkpoints.md", "python", "load_into_transformer_2")
    exec(code.replace("lora-high.safetensors", high).replace("lora-low.safetensors", low), {"pipe": theirs})
    for expert, file, time in ((theirs.transformer, high, HIGH), (theirs.transformer_2, low, LOW)):
        assert 2 * bound(expert) == len(load_file(file))
        torch.testing.assert_close(output(expert, time), output(tuned, time), atol=1e-5, rtol=1e-5)


def test_the_command_checks_the_adapter_against_the_model_that_it_is_told(
    wan: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(wan("A14B"), tmp_path / "adapter")
    words = ["export", "comfyui", "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "lora.safetensors")]
    with pytest.raises(SystemExit, match="the adapter is of another model|can't be loaded"):
        cli.main([*words, "--model", str(wan("2.1"))])
    cli.main([*words, "--model", str(wan("A14B"))])
    assert [Path(line).name for line in capsys.readouterr().out.split()] == [
        "lora-high.safetensors",
        "lora-low.safetensors",
    ]


def test_an_adapter_of_another_size_is_refused(wan: Folder, tmp_path: Path) -> None:
    tune(wan("2.1"), tmp_path / "adapter")
    with pytest.raises(ModelError, match="the adapter (is of another model|can't be loaded)"):
        export.family_for(wan("A14B"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.cat([t, t], dim=-1) for name, t in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="is of another model"):
        export.family_for(wan("2.1"), tmp_path / "adapter")


def test_names_that_do_not_fit_the_family_are_refused(wan: Folder, tmp_path: Path) -> None:
    tune(wan("2.1"), tmp_path / "other", targets=("proj_out",))
    with pytest.raises(ModelError, match="'proj_out' has no name in ComfyUI's Wan; .* to_q, to_k"):
        export.export_comfyui(tmp_path / "other", tmp_path / "lora.safetensors")
    assert not (tmp_path / "lora.safetensors").exists()
    assert original_name("blocks.11.attn2.to_out.0") == "blocks.11.cross_attn.o"


@pytest.mark.parametrize("kind", ["2.1", "A14B"])
def test_merged_weights_need_no_lora(wan: Folder, tmp_path: Path, kind: tiny_wan.Kind) -> None:
    tuned = tune(wan(kind), tmp_path / "adapter")
    export.export_merged(wan(kind), tmp_path / "adapter", tmp_path / "merged")
    folders = {"": LOW} if kind == "2.1" else {"transformer": HIGH, "transformer_2": LOW}
    for name, time in folders.items():
        merged = WanTransformer3DModel.from_pretrained(tmp_path / "merged" / name)
        torch.testing.assert_close(output(merged, time), output(tuned, time), atol=1e-5, rtol=1e-5)
