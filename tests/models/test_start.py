"""Training begins from adapters as other programs write them, and computes what they do; others are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayvideo import sections
from rayvideo.models import ModelError, VideoModel, export, load_model, start
from rayvideo.models.cogvideox import CogVideoX
from rayvideo.models.experts import trained_expert
from rayvideo.models.lora import add_lora, load_adapter, lora_parameters, save_adapter
from rayvideo.models.modelscope import ModelScope
from rayvideo.models.wan import Wan
from tests import tiny_wan

TARGETS = ("to_q", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
HIGH, LOW = 900.0, 300.0
PLAIN: dict[str, Any] = {"rank": 2, "alpha": 6.0, "targets": TARGETS}
"""Rank 2 and scale 3."""


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.save_pipeline(tmp_path_factory.mktemp("wan") / "2.1")


@pytest.fixture(scope="module")
def a14b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.save_pipeline(tmp_path_factory.mktemp("wan") / "a14b", "A14B")


@torch.no_grad()
def predict(model: VideoModel, time: float = LOW) -> Tensor:
    """The denoiser's prediction for fixed latents and prompts."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 2, 4, 4, generator=generator)
    text = torch.randn(1, 512, model.prompt_width, generator=generator)
    return model.predict(latents, torch.tensor(time), text)


def tuned(path: Path, folder: Path, *, train: Any = None, **options: Any) -> VideoModel:
    """Write an adapter that does something; the model with it."""
    model = load_model(path, parts=("denoiser",))
    expert = trained_expert(model.denoiser, train)
    model.denoiser = add_lora(model.denoiser, sections.Lora(**PLAIN | options), seed=0, within=expert)
    torch.manual_seed(3)
    for weight in lora_parameters(model.denoiser).values():
        nn.init.normal_(weight, std=0.1)
    save_adapter(model.denoiser, folder)
    return model


def begun(path: Path, file: Any, *, train: Any = None, device: str = "cpu", **options: Any) -> VideoModel:
    """The model with an adapter that begins from `file`, of another scale than the file's."""
    where = {one: str(name) for one, name in file.items()} if isinstance(file, dict) else str(file)
    lora = sections.Lora(**PLAIN | {"alpha": 5.0, "start": where} | options)
    model = load_model(path, parts=("denoiser",), device=device)
    expert = trained_expert(model.denoiser, train)
    model.denoiser = add_lora(model.denoiser, lora, seed=1, within=expert)
    start.begin(model.denoiser, lora, type(model), expert)
    return model


def same(one: VideoModel, other: VideoModel, *times: float) -> None:
    for time in times or (LOW,):
        torch.testing.assert_close(predict(one, time), predict(other, time), atol=1e-6, rtol=1e-6)


WRITERS = [export.export_diffusers, export.export_comfyui, export.export_kohya]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_exported_can_be_begun_from(wan: Path, tmp_path: Path, write: Any) -> None:
    wanted = tuned(wan, tmp_path / "adapter")
    write(tmp_path / "adapter", tmp_path / "lora.safetensors", Wan)
    same(begun(wan, tmp_path / "lora.safetensors"), wanted)
    assert not torch.allclose(predict(wanted), predict(load_model(wan, parts=("denoiser",))), atol=1e-2)


def test_so_can_a_folder_of_pefts_and_at_its_own_scale_bit_for_bit(wan: Path, tmp_path: Path) -> None:
    wanted = tuned(wan, tmp_path / "adapter")
    same(begun(wan, tmp_path / "adapter"), wanted)
    again = lora_parameters(begun(wan, tmp_path / "adapter", alpha=6.0).denoiser)
    assert all(torch.equal(again[name], weight) for name, weight in lora_parameters(wanted.denoiser).items())


@pytest.mark.parametrize("write", [export.export_diffusers, export.export_kohya])
def test_a_unets_too_with_its_convolutions(tiny_pipeline: Path, tmp_path: Path, write: Any) -> None:
    targets = ("to_q", "to_out.0", "conv_in")
    wanted = tuned(tiny_pipeline, tmp_path / "adapter", targets=targets)
    write(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    same(begun(tiny_pipeline, tmp_path / "lora.safetensors", targets=targets), wanted)


def test_cogvideoxs_by_the_names_of_diffusers_alone(tiny_cog: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"targets": ("to_q", "to_out.0"), "rank": 2}
    wanted = tuned(tiny_cog, tmp_path / "adapter", **plain)
    export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", CogVideoX)
    found = begun(tiny_cog, tmp_path / "lora.safetensors", alpha=6.0, **plain)
    theirs = lora_parameters(wanted.denoiser)
    for name, weight in lora_parameters(found.denoiser).items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-6)
    with pytest.raises(ModelError, match="CogVideoX has no names of ComfyUI's; export it with those of diffusers"):
        export.export_kohya(tmp_path / "adapter", tmp_path / "kohya.safetensors", CogVideoX)


@pytest.mark.parametrize("write", WRITERS)
def test_each_expert_begins_from_its_own_file(a14b: Path, tmp_path: Path, write: Any) -> None:
    wanted = tuned(a14b, tmp_path / "adapter", train="both")
    high, low = write(tmp_path / "adapter", tmp_path / "lora.safetensors", Wan)
    same(begun(a14b, {"high": high, "low": low}, train="both"), wanted, HIGH, LOW)
    same(begun(a14b, tmp_path / "adapter", train="both"), wanted, HIGH, LOW)
    same(begun(a14b, low), wanted, LOW)
    same(begun(a14b, high, train="high"), wanted, HIGH)
    only = begun(a14b, {"high": high}, train="both")
    same(only, wanted, HIGH)
    same(only, load_model(a14b, parts=("denoiser",)), LOW)


def test_a_file_of_both_experts_says_whose_its_layers_are(a14b: Path, tmp_path: Path) -> None:
    wanted = tuned(a14b, tmp_path / "adapter", train="both")
    high, low = export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", Wan)
    second = {name.replace("transformer.", "transformer_2.", 1): w for name, w in load_file(low).items()}
    save_file(second | load_file(high), tmp_path / "both.safetensors")
    save_file(second, tmp_path / "second.safetensors")
    same(begun(a14b, tmp_path / "both.safetensors", train="both"), wanted, HIGH, LOW)
    same(begun(a14b, tmp_path / "second.safetensors"), wanted, LOW)
    same(begun(a14b, {"low": tmp_path / "second.safetensors"}), wanted, LOW)
    with pytest.raises(
        ModelError, match=r"has pairs for the expert 'high', and 'low' alone is trained: set model\.tra"
    ):
        begun(a14b, tmp_path / "both.safetensors")
    with pytest.raises(ModelError, match=r"for which of the two experts\? Set model\.lora\.start to \{high: FILE"):
        begun(a14b, low, train="both")
    with pytest.raises(ModelError, match=r"no layer is called 'transformer_2\.blocks"):
        begun(a14b, {"high": tmp_path / "second.safetensors"}, train="both")


def test_experts_are_named_only_where_there_are_some(wan: Path, tmp_path: Path) -> None:
    tuned(wan, tmp_path / "adapter")
    with pytest.raises(
        ModelError, match=r"^model\.lora\.start names the expert 'low', but this model has one denoiser"
    ):
        begun(wan, {"low": tmp_path / "adapter"})


def by_hand() -> dict[str, Tensor]:
    """A file of musubi-tuner's kind: rank 2, another alpha in each layer, in bf16."""
    torch.manual_seed(5)
    tensors = {}
    for number, (layer, inside, out) in enumerate(
        [("self_attn_q", 24, 24), ("cross_attn_o", 24, 24), ("ffn_2", 32, 24)]
    ):
        name = f"lora_unet_blocks_1_{layer}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, inside).bfloat16()
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 2).bfloat16()
        tensors[f"{name}.alpha"] = torch.tensor(1.0 + number)
    return tensors


def test_a_file_with_an_alpha_in_each_layer(wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = by_hand()
    save_file(tensors, tmp_path / "musubi.safetensors")
    with caplog.at_level("INFO"):
        found = begun(wan, tmp_path / "musubi.safetensors")
    assert "adapter: 3 layers begin from model.lora.start, 9 start fresh" in caplog.text
    merged = load_model(wan, parts=("denoiser",))
    block: Any = merged.denoiser.get_submodule("blocks.1")
    layers = {"self_attn_q": block.attn1.to_q, "cross_attn_o": block.attn2.to_out[0], "ffn_2": block.ffn.net[2]}
    for layer, module in layers.items():
        down, up, alpha = (tensors[f"lora_unet_blocks_1_{layer}.{w}"].float() for w in MATRICES)
        module.weight.data += alpha / 2 * up @ down
    same(found, merged)
    comfy = {
        f"diffusion_model.blocks.1.self_attn.q.{w}": tensors[f"lora_unet_blocks_1_self_attn_q.{w}"] for w in MATRICES
    }
    save_file(comfy, tmp_path / "comfy.safetensors")
    weights = lora_parameters(begun(wan, tmp_path / "comfy.safetensors").denoiser)
    name = "base_model.model.blocks.1.attn1.to_q.lora_B.default.weight"
    torch.testing.assert_close(weights[name], lora_parameters(found.denoiser)[name])


MATRICES = ("lora_down.weight", "lora_up.weight", "alpha")


def test_the_scale_may_stand_in_the_header(wan: Path, tmp_path: Path) -> None:
    """As diffusers' save_lora_weights writes it."""
    wanted = tuned(wan, tmp_path / "adapter")
    peft = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors = {name.replace("base_model.model", "transformer"): weight for name, weight in peft.items()}
    said = {"transformer.r": 2, "transformer.lora_alpha": 6.0, "transformer.use_dora": False}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    same(begun(wan, tmp_path / "lora.safetensors"), wanted)
    for text, message in (
        (json.dumps(said | {"transformer.use_rslora": True}), "its header says use_rslora, and only plain LoRA"),
        ("{", "lora_adapter_metadata in its header can't be read"),
        (json.dumps({"transformer.r": 2}), "lora_adapter_metadata in its header can't be read"),
    ):
        save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": text})
        with pytest.raises(ModelError, match=rf"^model\.lora\.start: .*lora\.safetensors: {message}"):
            begun(wan, tmp_path / "lora.safetensors")


def spoiled(tensors: dict[str, Tensor], **changes: Any) -> None:
    """Of every matrix A, or of every B, what a change makes of it."""
    for name in tensors:
        for matrix, change in changes.items():
            if f".lora_{matrix}." in name:
                tensors[name] = change(tensors[name])


Q, OWN = "transformer.blocks.0.attn1.to_q", "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.update({f"{Q}q.lora_{m}.weight": t.pop(f"{Q}.lora_{m}.weight") for m in "AB"}),
            r"no layer is called 'transformer\.blocks\.0\.attn1\.to_qq'; did you mean 'transformer\.blocks\.0\.attn1\."
            r"to_q'\? \(1 of 12 names bind to nothing\)\. What a layer may be called, by one of them: .*"
            r"transformer\.\S+, diffusion_model\.blocks\.\S+, lora_unet_blocks_\S+$",
        ),
        (
            lambda t: spoiled(t, A=lambda a: torch.cat([a, a], 1)),
            r"has a matrix A \[2, 48\], but the layer takes \[2, 24\]: the adapter is of another model, or of another "
            r"size of this one$",
        ),
        (lambda t: t.pop(f"{Q}.lora_A.weight"), rf"'{Q}' has B, but no matrix A$"),
        (lambda t: t.pop(f"{Q}.lora_B.weight"), rf"'{Q}' has A, but no matrix B$"),
        (lambda t: t.update({f"{Q}.alpha": torch.zeros(())}), rf"'{Q}': its scale alpha / rank is 0\.0"),
        (lambda t: t.update({f"{Q}.alpha": torch.ones(2)}), rf"'{Q}': its alpha \[2\] is no single number"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(())}), rf"'{Q}': A \[\] and B \[24, 2\] are no pair"),
        (lambda t: t.update({f"{Q}.dora_scale": torch.ones(1)}), rf"'{Q}\.dora_scale' is nothing of plain LoRA"),
        (lambda t: t.update({f"{Q}.lokr_w1": torch.ones(1)}), r"lokr_w1' is nothing of plain LoRA"),
        (lambda t: t.update({f"{Q}.hada_w1_a": torch.ones(1)}), r"hada_w1_a' is nothing of plain LoRA"),
        (lambda t: t.update({f"{Q}.diff_b": torch.ones(1)}), r"diff_b' is nothing of plain LoRA"),
        (lambda t: t[f"{Q}.lora_B.weight"].fill_(torch.nan), rf"'{Q}\.lora_B\.weight' holds NaN or Inf$"),
        (lambda t: t.clear(), "it holds no tensors"),
        (lambda t: spoiled(t, B=torch.zeros_like), "the adapter is untrained and changes nothing"),
        (
            lambda t: spoiled(t, A=lambda a: torch.cat([a, a]), B=lambda b: torch.cat([b, b], 1)),
            r"^model\.lora\.start is of rank 4, not 2: set model\.lora\.rank=4$",
        ),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(3, 24), f"{Q}.lora_B.weight": torch.ones(24, 3)}),
            r"is of rank 2, 3, not 2: only one rank can be trained$",
        ),
        (
            lambda t: t.update({f"{OWN}.lora_{m}.weight": t[f"{Q}.lora_{m}.weight"].clone() for m in "AB"}),
            r"is the second pair for the layer 'blocks\.0\.attn1\.to_q'$",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(wan: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    file = tmp_path / "lora.safetensors"
    tuned(wan, tmp_path / "adapter")
    export.export_diffusers(tmp_path / "adapter", file, Wan)
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    for device in ("cpu", "meta"):
        with pytest.raises(ModelError, match=message) as error:
            begun(wan, file, device=device)
        assert str(error.value).startswith("model.lora.start")
        assert "\n" not in str(error.value)


def test_the_targets_that_an_error_names_are_the_mend(wan: Path, tmp_path: Path) -> None:
    wanted = tuned(wan, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"for 6 layers that .*targets leaves out, such as 'blocks\.") as error:
        begun(wan, tmp_path / "adapter", targets=("to_q", "to_k", "net.2"))
    targets = str(error.value).rpartition("model.lora.targets=[")[2].removesuffix("]").split(",")
    assert targets == ["to_q", "to_k", "net.2", "to_out.0", "proj"]
    same(begun(wan, tmp_path / "adapter", targets=tuple(targets)), wanted)


def test_what_is_not_there_or_no_adapter_is_refused(wan: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.lora\.start: .*gone: no adapter here; a \.safetensors file, or a"):
        begun(wan, tmp_path / "gone")
    (tmp_path / "lora.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"^model\.lora\.start: .*lora\.safetensors: can't be read; is it complete"):
        begun(wan, tmp_path / "lora.safetensors")
    tuned(wan, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(ModelError, match=r"^model\.lora\.start: .*adapter: only plain LoRA of one rank"):
        begun(wan, tmp_path / "adapter")


def test_a_whole_adapter_passes_on_the_meta_device(wan: Path, tmp_path: Path) -> None:
    tuned(wan, tmp_path / "adapter")
    shapes = lora_parameters(begun(wan, tmp_path / "adapter", device="meta").denoiser)
    assert {weight.device.type for weight in shapes.values()} == {"meta"}


def test_weights_are_known_by_their_digest(wan: Path, tmp_path: Path) -> None:
    tuned(wan, tmp_path / "adapter")
    (file,) = export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", Wan)
    one = start.digests(sections.Lora(start=str(tmp_path / "adapter")))
    two = start.digests(sections.Lora(start={"low": file, "high": file}))
    assert {*one} | {*two} == {"start", "start.low", "start.high"}
    assert two["start.low"] == two["start.high"] != one["start"]
    assert len(one["start"]) == 64
    assert start.digests(sections.Lora()) == {}


def test_what_training_makes_of_it_is_an_adapter_like_any(wan: Path, tmp_path: Path) -> None:
    wanted = tuned(wan, tmp_path / "adapter")
    save_adapter(begun(wan, tmp_path / "adapter").denoiser, tmp_path / "again")
    model = load_model(wan, parts=("denoiser",))
    model.denoiser = load_adapter(model.denoiser, tmp_path / "again")
    same(model, wanted)
