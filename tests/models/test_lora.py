import pytest
import torch
from diffusers import DiffusionPipeline, UNet3DConditionModel
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from rayvideo import sections
from rayvideo.models import ModelError, load_model
from rayvideo.models.lora import (
    WEIGHTS,
    adapter_disabled,
    add_lora,
    load_adapter,
    lora_parameters,
    pairs,
    parameter_count,
    save_adapter,
)


def denoiser(tiny_pipeline, dtype=torch.float32):
    return load_model(tiny_pipeline, dtype=dtype, parts=["denoiser"]).denoiser


@pytest.fixture
def base(tiny_pipeline):
    return denoiser(tiny_pipeline)


@pytest.fixture
def tuned(tiny_pipeline):
    """A denoiser whose adapter already does something."""
    tuned = add_lora(denoiser(tiny_pipeline), sections.Lora(), seed=0)
    torch.manual_seed(0)
    for weight in lora_parameters(tuned).values():
        nn.init.normal_(weight, std=0.1)
    return tuned


@torch.no_grad()
def predict(denoiser):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 8, 8, generator=generator)
    embeds = torch.randn(2, 48, 32, generator=generator)
    weight = next(denoiser.parameters())
    return denoiser(latents.to(weight.dtype), torch.tensor(51), embeds.to(weight.dtype), return_dict=False)[0]


def test_the_references_unet_gets_264_pairs():
    with torch.device("meta"):
        unet = UNet3DConditionModel()
        assert sum(p.numel() for p in unet.parameters()) == 1_411_233_860
        tuned = add_lora(unet, sections.Lora(), seed=0)
    assert sum(isinstance(module, LoraLayer) for module in tuned.modules()) == 264
    assert sum(p.numel() for p in lora_parameters(tuned).values()) == 1_661_440


def test_a_fresh_adapter_changes_nothing_and_trains_alone(base, tiny_pipeline):
    tuned = add_lora(denoiser(tiny_pipeline), sections.Lora(), seed=0)
    assert torch.equal(predict(tuned), predict(base))
    assert not any(module.training for module in tuned.modules())
    trainable = lora_parameters(tuned)
    assert trainable
    assert {name for name, _ in tuned.named_parameters() if "lora_" in name} == set(trainable)


def test_matrices_start_as_the_references(tiny_pipeline):
    tuned = add_lora(denoiser(tiny_pipeline), sections.Lora(rank=8), seed=0)
    a = torch.cat([w.flatten() for name, w in lora_parameters(tuned).items() if "lora_A" in name])
    b = torch.cat([w.flatten() for name, w in lora_parameters(tuned).items() if "lora_B" in name])
    assert a.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert b.abs().max() == 0


def test_the_seed_alone_decides_the_start_and_other_random_numbers_go_on(tiny_pipeline):
    def first(seed):
        weights = lora_parameters(add_lora(denoiser(tiny_pipeline), sections.Lora(), seed=seed))
        return next(iter(weights.values()))

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one = first(7)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first(7), one)
    assert not torch.equal(first(8), one)


def test_masters_are_fp32_on_a_bf16_denoiser_and_learn(tiny_pipeline):
    tuned = add_lora(denoiser(tiny_pipeline, torch.bfloat16), sections.Lora(), seed=0)
    weights = lora_parameters(tuned)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert {p.dtype for name, p in tuned.named_parameters() if name not in weights} == {torch.bfloat16}
    latents, embeds = torch.randn(1, 4, 2, 8, 8).bfloat16(), torch.randn(1, 48, 32).bfloat16()
    tuned(latents, torch.tensor(51), embeds, return_dict=False)[0].float().square().sum().backward()
    gradient = next(w.grad for name, w in weights.items() if "lora_B" in name)
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_the_base_is_back_while_the_adapter_is_disabled(base, tuned):
    with_adapter = predict(tuned)
    assert not torch.allclose(with_adapter, predict(base), atol=1e-3)
    with adapter_disabled(tuned):
        assert torch.equal(predict(tuned), predict(base))
    assert torch.equal(predict(tuned), with_adapter)
    assert lora_parameters(tuned)


def test_the_adapter_is_found_inside_a_wrapper(base, tuned, tmp_path):
    wrapped = nn.DataParallel(tuned)
    with adapter_disabled(wrapped):
        assert torch.equal(predict(tuned), predict(base))
    save_adapter(wrapped, tmp_path / "adapter")
    assert torch.equal(predict(load_adapter(base, tmp_path / "adapter")), predict(tuned))


def test_merged_equals_unmerged(tuned):
    unmerged = predict(tuned)
    torch.testing.assert_close(predict(tuned.merge_and_unload()), unmerged, atol=1e-5, rtol=1e-4)


def test_alpha_scales_the_adapter(tiny_pipeline, base):
    outputs = []
    for alpha in (4.0, 8.0):
        tuned = add_lora(denoiser(tiny_pipeline), sections.Lora(alpha=alpha), seed=0)
        for name, weight in lora_parameters(tuned).items():
            if "lora_B" in name:
                nn.init.constant_(weight, 1e-4)
        outputs.append(predict(tuned) - predict(base))
    torch.testing.assert_close(outputs[1], 2 * outputs[0], atol=2e-6, rtol=0.02)


def test_three_lines_load_the_adapter_onto_the_pipeline(tuned, tiny_pipeline, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
    plain = predict(pipe.unet)
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "adapter")
    assert torch.equal(predict(pipe.unet), predict(tuned))
    assert not torch.allclose(predict(pipe.unet), plain, atol=1e-3)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("red cat", num_frames=2, num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 2, 3, 64, 64)


def test_loading_onto_a_bf16_denoiser_keeps_fp32_masters(tuned, tiny_pipeline, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    half = load_adapter(denoiser(tiny_pipeline, torch.bfloat16), tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    loaded = {n.replace(".default", ""): w for n, w in half.named_parameters() if "lora_" in n}
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert not lora_parameters(half)


def test_gathered_tensors_take_the_place_of_the_denoisers_own(tuned, base, tmp_path):
    gathered = {name: torch.zeros_like(weight) for name, weight in lora_parameters(tuned).items()}
    plain = predict(base)
    save_adapter(tuned, tmp_path / "adapter", state_dict=gathered)
    assert torch.equal(predict(load_adapter(base, tmp_path / "adapter")), plain)


def test_saving_again_replaces_the_adapter_and_leaves_nothing_behind(tuned, base, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    for weight in lora_parameters(tuned).values():
        nn.init.normal_(weight, std=0.2)
    save_adapter(tuned, tmp_path / "adapter")
    assert torch.equal(predict(load_adapter(base, tmp_path / "adapter")), predict(tuned))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_target_that_names_no_layer_is_refused(base):
    with pytest.raises(ModelError, match="no layer of the denoiser is called 'to_quary'"):
        add_lora(base, sections.Lora(targets=("to_q", "to_quary")), seed=0)


@pytest.mark.parametrize(
    ("target", "kind"), [("attn1", "Attention"), ("norm1", "LayerNorm"), ("attentions", "ModuleL")]
)
def test_a_target_that_names_no_matrix_is_refused(base, target, kind):
    with pytest.raises(ModelError, match=f"'{target}' names a {kind}.* layers are .*to_k, to_out.0, to_q, to_v"):
        add_lora(base, sections.Lora(targets=("to_q", target)), seed=0)


def test_every_target_is_bound(base):
    tuned = add_lora(base, sections.Lora(rank=2, targets=("to_q", "to_out.0", "conv_in")), seed=0)
    bound = pairs(tuned)
    assert {name.rpartition("attn")[2][2:] for name in bound if "attn" in name} == {"to_q", "to_out.0"}
    assert "conv_in" in bound
    assert parameter_count(tuned) == sum(w.numel() for w in lora_parameters(tuned).values()) > 0


def test_an_adapter_that_changes_nothing_is_warned_of(base, tuned, tiny_pipeline, tmp_path, caplog):
    save_adapter(add_lora(denoiser(tiny_pipeline), sections.Lora(), seed=0), tmp_path / "fresh")
    load_adapter(base, tmp_path / "fresh")
    assert "fresh: the adapter is untrained and changes nothing" in caplog.text
    caplog.clear()
    save_adapter(tuned, tmp_path / "tuned")
    load_adapter(denoiser(tiny_pipeline), tmp_path / "tuned")
    assert not caplog.text


def test_an_adapter_is_held_against_shapes_alone(tuned, tiny_pipeline, tmp_path):
    save_adapter(tuned, tmp_path)
    shapes = load_model(tiny_pipeline, device="meta", parts=("denoiser",)).denoiser
    assert {w.device.type for w in load_adapter(shapes, tmp_path).parameters() if w.dim() > 1} == {"meta"}
    weights = load_file(tmp_path / WEIGHTS)
    del weights[min(weights)]
    save_file(weights, tmp_path / WEIGHTS)
    shapes = load_model(tiny_pipeline, device="meta", parts=("denoiser",)).denoiser
    with pytest.raises(ModelError, match="of another model: 1 tensors are missing"):
        load_adapter(shapes, tmp_path)


def test_a_folder_without_adapter_is_refused(base, tmp_path):
    with pytest.raises(ModelError, match="no adapter here"):
        load_adapter(base, tmp_path)


def test_a_truncated_adapter_is_refused(tuned, base, tmp_path):
    save_adapter(tuned, tmp_path)
    file = tmp_path / WEIGHTS
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelError, match="can't be loaded"):
        load_adapter(base, tmp_path)


def test_an_adapter_of_another_denoiser_is_refused(tuned, tmp_path):
    save_adapter(tuned, tmp_path)
    other = UNet3DConditionModel(
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    with pytest.raises(ModelError, match=r"of another model: \d+ tensors .*'base_model\."):
        load_adapter(other, tmp_path)


def test_an_adapter_of_another_width_is_refused(tuned, tmp_path):
    save_adapter(tuned, tmp_path)
    config = dict(tuned.get_base_model().config) | {"cross_attention_dim": 64}
    with pytest.raises(ModelError, match=r"of another model: 8 tensors .*attn2\.to_k\.lora_A"):
        load_adapter(UNet3DConditionModel.from_config(config), tmp_path)
