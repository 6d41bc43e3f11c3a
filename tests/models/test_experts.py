"""Two real, tiny denoisers behind one call, with one adapter over both or over one of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from rayvideo import sections
from rayvideo.errors import UserError
from rayvideo.models import ModelError, export
from rayvideo.models.experts import EXPERTS, Experts, split_by_expert, trained_expert
from rayvideo.models.lora import (
    adapter_disabled,
    add_lora,
    load_adapter,
    lora_parameters,
    pairs,
    save_adapter,
)
from rayvideo.models.modelscope import ModelScope
from tests.tiny import build_unet

BOUNDARY = 875.0
HIGH, LOW = torch.tensor(875), torch.tensor(874)


def experts() -> Experts:
    torch.manual_seed(0)
    return Experts(build_unet(), build_unet(), BOUNDARY).requires_grad_(False).eval()


def predict(network: nn.Module, timestep: Tensor, clips: Iterable[int] = (0, 1, 2)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(3, 4, 2, 8, 8, generator=generator), torch.randn(3, 5, 32, generator=generator)
    chosen = list(clips)
    prediction: Tensor = network(latents[chosen], timestep, text[chosen], return_dict=False)[0]
    return prediction


def tuned(*targets: str, network: nn.Module | None = None) -> nn.Module:
    """The experts with an adapter that does something."""
    adapted = add_lora(network or experts(), sections.Lora(rank=2, alpha=6.0, targets=targets), seed=0)
    torch.manual_seed(3)
    for weight in lora_parameters(adapted).values():
        nn.init.normal_(weight, std=0.1)
    return adapted


def layers_of_low(*words: str) -> list[str]:
    return [f"low.{name}" for name, _ in build_unet().named_modules() if name.endswith(words)]


@torch.no_grad()
def test_a_timestep_that_all_clips_share_goes_to_its_expert() -> None:
    network = experts()
    assert torch.equal(predict(network, HIGH), predict(network.high, HIGH))
    assert torch.equal(predict(network, LOW), predict(network.low, LOW))
    assert not torch.allclose(predict(network.high, LOW), predict(network.low, LOW), atol=1e-3)
    assert torch.equal(predict(network, HIGH.expand(3)), predict(network.high, HIGH.expand(3)))


def test_clips_of_both_sides_are_shared_out_and_come_back_in_their_places() -> None:
    network, timesteps = experts(), torch.tensor([900, 12, 875])
    both = predict(network, timesteps)
    torch.testing.assert_close(both[[0, 2]], predict(network.high, timesteps[[0, 2]], [0, 2]))
    torch.testing.assert_close(both[1:2], predict(network.low, timesteps[1:2], [1]))


def test_gradients_of_a_split_batch_reach_both_experts() -> None:
    adapted = tuned("to_q")
    predict(adapted, torch.tensor([12, 900, 875])).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in lora_parameters(adapted).values())
    adapted.zero_grad(set_to_none=True)
    predict(adapted, LOW).square().sum().backward()
    for name, weight in lora_parameters(adapted).items():
        assert (weight.grad is None) == (".high." in name), name


def test_the_adapter_is_over_both_and_goes_off_in_both() -> None:
    plain, adapted = experts(), tuned("to_q", "to_out.0")
    assert {name.partition(".")[0] for name in pairs(adapted)} == set(EXPERTS)
    with torch.no_grad():
        for timestep in (HIGH, LOW):
            assert not torch.allclose(predict(adapted, timestep), predict(plain, timestep), atol=1e-3)
            with adapter_disabled(adapted):
                assert torch.equal(predict(adapted, timestep), predict(plain, timestep))


@pytest.mark.parametrize("words", [("attn1.to_q",), ("to_q", "to_k", "to_v", "to_out.0")])
def test_targets_with_full_names_adapt_one_expert_alone(words: tuple[str, ...], tmp_path: Path) -> None:
    targets = layers_of_low(*words)
    adapted = tuned(*targets)
    assert set(pairs(adapted)) == set(targets)
    assert not any(isinstance(module, LoraLayer) for name, module in adapted.named_modules() if ".high." in name)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(experts(), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(predict(again, LOW), predict(adapted, LOW))
        assert torch.equal(predict(again, HIGH), predict(experts(), HIGH))
    written = export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    assert written == [str(tmp_path / "lora-low.safetensors")]
    assert {name.rsplit(".", 2)[0] for name in load_file(written[0])} == {
        target.replace("low.", "unet.", 1) for target in targets
    }


def test_a_target_that_neither_expert_has_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no layer of the denoiser is called 'low\.to_q'"):
        add_lora(experts(), sections.Lora(targets=("low.to_q",)), seed=0)


@torch.no_grad()
def test_a_saved_adapter_comes_back_over_both(tmp_path: Path) -> None:
    adapted = tuned("to_q", "to_k", "to_v", "to_out.0")
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(experts(), tmp_path / "adapter")
    for timestep in (HIGH, LOW):
        assert torch.equal(predict(again, timestep), predict(adapted, timestep))
    with pytest.raises(ModelError, match="of another model"):
        load_adapter(build_unet(), tmp_path / "adapter")


@torch.no_grad()
def test_each_experts_adapter_is_exported_apart(tmp_path: Path) -> None:
    adapted = tuned("to_q", "to_out.0")
    save_adapter(adapted, tmp_path / "adapter")
    files = export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    assert files == [str(tmp_path / f"lora-{expert}.safetensors") for expert in EXPERTS]
    assert not (tmp_path / "lora.safetensors").exists()
    for expert, file, timestep in zip(EXPERTS, files, (HIGH, LOW), strict=True):
        alone = experts().get_submodule(expert)
        for name, matrix in load_file(file).items():
            layer, kind, _ = name.removeprefix("unet.").rsplit(".", 2)
            if kind == "lora_B":
                lower = load_file(file)[name.replace("lora_B", "lora_A")]
                alone.get_submodule(layer).weight += matrix @ lower
        torch.testing.assert_close(predict(alone, timestep), predict(adapted, timestep), atol=2e-5, rtol=1e-4)
    kohya = export.export_kohya(tmp_path / "adapter", tmp_path / "kohya.safetensors", ModelScope)
    assert [Path(file).name for file in kohya] == ["kohya-high.safetensors", "kohya-low.safetensors"]
    assert not any("_high_" in name or "_low_" in name for file in kohya for name in load_file(file))


def test_if_one_file_is_there_already_neither_is_written(tmp_path: Path) -> None:
    save_adapter(tuned("to_q"), tmp_path / "adapter")
    (tmp_path / "lora-low.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"lora-low\.safetensors exists already"):
        export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "lora-low.safetensors"]


def test_an_expert_that_learned_nothing_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted = tuned("to_q")
    for name, weight in lora_parameters(adapted).items():
        if ".high." in name and "lora_B" in name:
            nn.init.zeros_(weight)
    save_adapter(adapted, tmp_path / "adapter")
    export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    assert "expert 'high' are untrained" in caplog.text
    assert "'low'" not in caplog.text


def test_tensors_of_a_single_denoiser_stay_together() -> None:
    tensors = {"high.to_q.lora_A.weight": torch.ones(1), "conv_in.lora_A.weight": torch.ones(1)}
    assert split_by_expert(tensors) == {None: tensors}


@pytest.mark.parametrize("expert", EXPERTS)
def test_an_adapter_within_one_expert_leaves_the_other_as_it_is(expert: str, tmp_path: Path) -> None:
    plain = experts()
    options = sections.Lora(targets=("to_q", "to_out.0"))
    adapted = add_lora(experts(), options, seed=0, within=expert)
    assert {name.partition(".")[0] for name in pairs(adapted)} == {expert}
    assert len(pairs(adapted)) * 2 == len(pairs(add_lora(experts(), options, seed=0)))
    for weight in lora_parameters(adapted).values():
        nn.init.normal_(weight, std=0.1)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(experts(), tmp_path / "adapter")
    with torch.no_grad():
        for name, timestep in zip(EXPERTS, (HIGH, LOW), strict=True):
            assert torch.equal(predict(again, timestep), predict(adapted, timestep))
            assert torch.equal(predict(again, timestep), predict(plain, timestep)) == (name != expert)
    written = export.export_diffusers(tmp_path / "adapter", tmp_path / "lora.safetensors", ModelScope)
    assert [Path(file).name for file in written] == [f"lora-{expert}.safetensors"]


def test_a_target_that_only_the_other_expert_has_is_refused() -> None:
    network = experts()
    network.high.add_module("extra", nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no layer of the denoiser is called 'extra'"):
        add_lora(network, sections.Lora(targets=("extra",)), seed=0, within="low")


def test_the_recipe_says_which_expert_is_trained() -> None:
    found = [trained_expert(experts(), option) for option in (None, "low", "high", "both")]
    assert found == ["low", "low", "high", None]
    assert trained_expert(build_unet(), None) is None
    with pytest.raises(ModelError, match="^model.train 'low': this model has one denoiser; allowed is null$"):
        trained_expert(build_unet(), "low")


def test_the_experts_that_a_chain_asks() -> None:
    asked = [experts().visited(torch.tensor(times)) for times in ([999.0, 875.0], [874.9, 1.0], [900.0, 3.0])]
    assert asked == [{"high"}, {"low"}, {"high", "low"}]
