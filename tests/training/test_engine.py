"""DeepSpeed's engine in one process against torch's AdamW; tests/cluster/test_training.py has the stages on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rayvideo.errors import RecipeError
from rayvideo.models.lora import WEIGHTS, add_lora, load_adapter, lora_parameters
from rayvideo.runs.checkpoints import CheckpointError
from rayvideo.sections import Lora, Training
from rayvideo.training.deepspeed_engine import DeepSpeedEngine, supports_fp16
from rayvideo.training.ray_train.saver import require_same
from tests.training.network import Net

pytestmark = pytest.mark.usefixtures("process_group")


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    adapted = add_lora(Net(), Lora(rank=2, targets=("to_q", "to_k")), seed=0)
    for weight in lora_parameters(adapted).values():
        nn.init.normal_(weight.data)
    return adapted


def loss_of(network: nn.Module, micro_batch: int) -> Tensor:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(micro_batch))
    return network(x).square().mean()


def by_hand(options: Training, steps: int) -> tuple[dict[str, Tensor], list[float]]:
    network = denoiser()
    weights = lora_parameters(network)
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1, weight_decay=0.0)
    norms = []
    for step in range(steps):
        for micro in range(options.accumulation):
            (loss_of(network, step * options.accumulation + micro) / options.accumulation).backward()
        limit = options.max_grad_norm or float("inf")
        norms.append(nn.utils.clip_grad_norm_(weights.values(), limit).item())
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() for name, weight in weights.items()}, norms


def by_engine(engine: DeepSpeedEngine, options: Training, steps: range) -> list[float]:
    norms = []
    for step in steps:
        for micro in range(options.accumulation):
            engine.backward(loss_of(engine.denoiser, step * options.accumulation + micro))
        update = engine.step(0.1)
        assert update.applied
        norms.append(update.gradient_norm)
    return norms


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_and_accumulation_are_those_of_torch(stage):
    options = Training(zero_stage=stage, accumulation=3, batch_size=4, max_grad_norm=0.05)
    expected, norms = by_hand(options, 3)
    assert min(norms) > options.max_grad_norm, "nothing is clipped"
    engine = DeepSpeedEngine(denoiser(), options)
    assert by_engine(engine, options, range(3)) == pytest.approx(norms, rel=1e-5)
    torch.testing.assert_close(engine.adapter(), expected, rtol=1e-4, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_saved_engine_goes_on_as_if_nothing_had_happened(stage, tmp_path):
    options = Training(zero_stage=stage, batch_size=4)
    expected, _ = by_hand(options, 4)
    first = DeepSpeedEngine(denoiser(), options)
    by_engine(first, options, range(2))
    first.save(tmp_path)
    first.save_adapter(tmp_path / "adapter", first.adapter())
    first.close()
    second = DeepSpeedEngine(denoiser(), options)
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(CheckpointError, match="step-000002: .* holds other weights .*lora_"):
        require_same(second.adapter(), saved, "step-000002")
    second.load(tmp_path)
    require_same(second.adapter(), saved, "step-000002")
    by_engine(second, options, range(2, 4))
    torch.testing.assert_close(second.adapter(), expected, rtol=1e-4, atol=1e-5)
    second.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_told(stage):
    engine = DeepSpeedEngine(denoiser(), Training(zero_stage=stage, batch_size=4))
    engine.backward(loss_of(engine.denoiser, 0) * torch.tensor(float("nan")))
    assert engine.step(0.1) == (0.0, False)
    engine.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_the_saved_adapter_is_the_trained_one(stage, tmp_path: Path):
    options = Training(zero_stage=stage, batch_size=4)
    expected, _ = by_hand(options, 2)
    engine = DeepSpeedEngine(denoiser(), options)
    by_engine(engine, options, range(2))
    engine.save_adapter(tmp_path / "adapter", engine.adapter())
    engine.close()
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").values()
    )
    torch.manual_seed(0)
    loaded = load_adapter(Net(), tmp_path / "adapter")
    for name, weight in loaded.named_parameters():
        if name in expected:
            torch.testing.assert_close(weight.data, expected[name], rtol=1e-4, atol=1e-5)


def test_fp16_runs_or_is_refused():
    options = Training(zero_stage=2, precision="fp16", batch_size=4)
    if not supports_fp16():
        with pytest.raises(RecipeError, match=r"training\.precision 'fp16': this machine can't compute it"):
            DeepSpeedEngine(denoiser(), options)
        return
    engine = DeepSpeedEngine(denoiser().half(), options)
    engine.backward(engine.denoiser(torch.randn(4, 8).half()).float().square().mean())
    assert engine.step(0.1).applied
    assert all(weight.dtype == torch.float32 for weight in engine.adapter().values())
    engine.close()
