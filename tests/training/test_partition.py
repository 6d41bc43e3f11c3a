"""Two workers that hold a Wan of two experts in shares, against two that hold it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor, nn

from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.precision import DTYPES
from rayvideo.sections import Lora, Training
from rayvideo.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config
from tests import tiny_wan
from tests.training.worlds import run

CASES: dict[str, dict[str, Any]] = {
    "whole": {"zero_stage": 1},
    "shares": {"zero_stage": 3},
    "offloaded": {"zero_stage": 3, "offload": "cpu"},
    "whole-bf16": {"zero_stage": 1, "precision": "bf16"},
    "shares-bf16": {"zero_stage": 3, "precision": "bf16"},
}
STEPS = 2


def training_of(case: str) -> Training:
    return Training(**{"workers": 2, "batch_size": 1, "precision": "fp32"} | CASES[case])


def train(place: Path, model: Path) -> None:
    """One worker's steps of every case; what it held, and in the end the adapter, goes into `place`."""
    initialize = deepspeed.initialize
    for case in CASES:
        training = training_of(case)
        seen: dict[str, Any] = {}

        def watched(seen: dict[str, Any] = seen, **arguments: Any) -> Any:
            seen["given"] = sizes(arguments["model"])
            return initialize(**arguments)

        deepspeed.initialize = watched
        loaded: Any = load_model(model, dtype=DTYPES[training.precision], parts=("denoiser",))
        seen["formats"] = {weight.dtype for weight in loaded.denoiser.parameters()}
        adapted = add_lora(loaded.denoiser, Lora(rank=2), seed=0, within="low")
        for weight in lora_parameters(adapted).values():
            weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) / 4)
        whole = {name: weight.numel() for name, weight in adapted.named_parameters()}
        engine = DeepSpeedEngine(adapted, training)
        loaded.denoiser = engine.denoiser
        seen["ready"] = sizes(adapted)
        seen["kept"] = {weight.dtype for name, weight in adapted.named_parameters() if "lora_" not in name}
        begun = engine.adapter()
        norms = [step(loaded, engine, number) for number in range(STEPS)]
        outcome = {"whole": whole, "begun": begun, "norms": norms, "adapter": engine.adapter(), **seen}
        torch.save(outcome, place / f"{case}-{dist.get_rank()}.pt")
        engine.close()


def step(model: Any, engine: DeepSpeedEngine, number: int) -> float:
    generator = torch.Generator().manual_seed(2 * number + dist.get_rank())
    latents = torch.randn(1, tiny_wan.CHANNELS, 2, 4, 4, generator=generator)
    text = torch.randn(1, 8, tiny_wan.TEXT_WIDTH, generator=generator)
    engine.backward(model.predict(latents, torch.tensor(500.0), text).square().mean())
    return engine.step(0.05).gradient_norm


def sizes(denoiser: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> how many numbers of a weight are there, and how many a share of it has, 0 where it has none."""
    shares = {name: getattr(weight, "ds_tensor", torch.empty(0)) for name, weight in denoiser.named_parameters()}
    return {name: (weight.numel(), shares[name].numel()) for name, weight in denoiser.named_parameters()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Case -> what each of two workers wrote."""
    model = tiny_wan.save_pipeline(tmp_path_factory.mktemp("models") / "a14b", "A14B")
    place = run(train, 2, lambda: tmp_path_factory.mktemp("world"), model)
    return {case: [torch.load(place / f"{case}-{rank}.pt", weights_only=False) for rank in (0, 1)] for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if training_of(case).zero_stage == 3])
def test_no_worker_is_given_a_whole_weight(outcomes: Any, case: str) -> None:
    for outcome in outcomes[case]:
        # Before DeepSpeed sets up, which moves to the device whatever it is given.
        assert {name: here for name, (here, _) in outcome["given"].items()} == dict.fromkeys(outcome["whole"], 0)
        for when in ("given", "ready"):
            for name, (_, share) in outcome[when].items():
                assert share == -(-outcome["whole"][name] // 2), f"{name}: its half"
        assert outcome["kept"] == outcome["formats"], "layers that Wan keeps in fp32 stay so"
    assert any(here for here, _ in outcomes["whole"][0]["given"].values()), "else nothing is seen here"


@pytest.mark.parametrize("case", [case for case in CASES if training_of(case).zero_stage == 3])
def test_shares_change_no_number(outcomes: Any, case: str) -> None:
    precision = training_of(case).precision
    whole = outcomes["whole" if precision == "fp32" else "whole-bf16"][0]
    norms, adapter = outcomes[case][0]["norms"], outcomes[case][0]["adapter"]
    assert norms == pytest.approx(whole["norms"], rel=1e-4 if precision == "fp32" else 1e-2)
    moved = flat(whole["adapter"]) - flat(whole["begun"])
    rounding = 1e-4 if precision == "fp32" else 0.1  # AdamW makes steps of one size of small gradients, too
    assert (flat(adapter) - flat(whole["adapter"])).norm() < rounding * moved.norm()


def flat(adapter: dict[str, Tensor]) -> Tensor:
    return torch.cat([weight.flatten() for weight in adapter.values()])


def test_offload_takes_shares() -> None:
    kept, moved = (deepspeed_config(Training(zero_stage=3, offload=offload), 1) for offload in ("none", "cpu"))
    assert "offload_param" not in kept["zero_optimization"]
    assert moved["zero_optimization"]["offload_param"] == {"device": "cpu"}
    with pytest.raises(
        ValueError, match=r"offload 'cpu' with training\.zero_stage 2: .* set training\.zero_stage to 3,"
    ):
        Training(offload="cpu")


def test_fetching_is_set_for_shares_alone() -> None:
    """DeepSpeed's own defaults, unless the recipe says otherwise; a large adapter's matrices stay whole."""
    names = ("stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_param_persistence_threshold")

    def settings(largest: int, **options: Any) -> list[int]:
        zero = deepspeed_config(Training(**options), 1, largest=largest)["zero_optimization"]
        return [zero[name] for name in names if name in zero]

    defaults = DeepSpeedZeroConfig(stage=3)
    assert settings(1000, zero_stage=3) == [
        defaults.prefetch_bucket_size,
        defaults.max_live_parameters,
        defaults.param_persistence_threshold,
    ]
    chosen = settings(221_184, zero_stage=3, zero3={"prefetch": 350_000_000, "live": 500_000_000})
    assert chosen[:2] == [350_000_000, 500_000_000]
    assert chosen[2] == 221_184
    assert settings(1000, zero_stage=2) == []
    with pytest.raises(
        ValueError, match=r"training\.zero3 with training\.zero_stage 2: .* set training\.zero_stage to 3"
    ):
        Training(zero3={"live": 500_000_000})
