"""A training that goes from 2 workers to 1, to 4 and back to 2, against one with 2 workers all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.errors import RecipeError
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.precision import DTYPES
from rayvideo.sections import Lora, Training
from rayvideo.training.deepspeed_engine import DeepSpeedEngine, supports_fp16
from tests.training.network import Net
from tests.training.worlds import run

WORLDS = (2, 1, 4, 2)
STEPS = 2
"""Of each of them."""
MICRO_BATCHES = 4
"""Of all workers in a step."""
CASES: list[dict[str, Any]] = [
    *({"zero_stage": stage, "precision": "fp32"} for stage in (0, 1, 2, 3)),
    *({"zero_stage": stage, "precision": "bf16"} for stage in (0, 2, 3)),
    *({"zero_stage": stage, "precision": "fp16"} for stage in (2, 3) if supports_fp16()),
]
OVERFLOW = 1
"""The step whose loss is too large for fp16: a lowered loss scale must survive, too."""


def training_of(case: int) -> Training:
    return Training(workers=2, accumulation=2, batch_size=4, max_grad_norm=0.5, **CASES[case])


def train(place: Path, first: int, source: Path | None) -> None:
    """One worker's `STEPS` steps of every case, saved in `place`; the first world's then go on to the end."""
    for case in range(len(CASES)):
        training, folder = training_of(case), place / str(case)
        engine = engine_for(training, universal=source is not None)  # each world differs from the one before
        if source:
            engine.load(source / str(case))
        steps(engine, training, first, first + STEPS, folder / "outcome.pt")
        engine.save(folder)
        if not source:
            steps(engine, training, first + STEPS, STEPS * len(WORLDS), folder / "undisturbed.pt")
        engine.close()


def engine_for(training: Training, *, universal: bool = False) -> DeepSpeedEngine:
    torch.manual_seed(0)
    adapted = add_lora(Net().to(DTYPES[training.precision]), Lora(rank=2, targets=("to_q", "to_k")), seed=0)
    for weight in lora_parameters(adapted).values():
        weight.data.copy_(torch.randn(weight.shape) / 2)
    return DeepSpeedEngine(adapted, training, universal=universal)


def steps(engine: DeepSpeedEngine, training: Training, first: int, last: int, outcome: Path) -> None:
    """Make the steps and write down what they did, on rank 0."""
    rank, share = dist.get_rank(), training.accumulation_of(dist.get_world_size())
    updates = []
    for step in range(first, last):
        for micro in range(rank * share, (rank + 1) * share):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step * MICRO_BATCHES + micro))
            loss = engine.denoiser(x.to(DTYPES[training.precision])).float().square().mean()
            engine.backward(loss * (1e30 if training.precision == "fp16" and step == OVERFLOW else 1.0))
        updates.append(tuple(engine.step(0.05)))
    adapter = engine.adapter()
    if rank == 0:
        scale = engine._engine.optimizer.loss_scale if training.precision == "fp16" else 1.0
        outcome.parent.mkdir(exist_ok=True)
        torch.save({"adapter": adapter, "updates": updates, "scale": scale}, outcome)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the workers of each world left their checkpoints and outcomes."""
    places: list[Path] = []
    for number, world in enumerate(WORLDS):
        source = places[-1] if places else None
        places.append(run(train, world, lambda: tmp_path_factory.mktemp("world"), number * STEPS, source))
    return places


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(map(str, case.values())) for case in CASES])
def test_other_numbers_of_workers_change_nothing(places, case):
    outcomes = [torch.load(place / str(case) / "outcome.pt", weights_only=True) for place in places]
    wanted = torch.load(places[0] / str(case) / "undisturbed.pt", weights_only=True)
    updates = [update for outcome in outcomes[1:] for update in outcome["updates"]]
    for (norm, applied), (wanted_norm, wanted_applied) in zip(updates, wanted["updates"], strict=True):
        assert applied == wanted_applied
        assert norm == pytest.approx(wanted_norm, rel=1e-5)
    assert outcomes[-1]["scale"] == wanted["scale"]
    begun, ended, adapter = (flat(outcome["adapter"]) for outcome in (outcomes[0], outcomes[-1], wanted))
    assert (ended - adapter).norm() < 1e-6 * adapter.norm() < 1e-4 * (adapter - begun).norm()


def flat(adapter: dict[str, Tensor]) -> Tensor:
    return torch.cat([weight.flatten() for weight in adapter.values()])


def test_the_global_batch_belongs_to_the_run():
    begun = Training(workers=2, accumulation=3, batch_size=2)
    assert (begun.global_batch, begun.accumulation_of(1), begun.accumulation_of(6)) == (12, 6, 1)
    with pytest.raises(RecipeError, match=r"training\.workers: 4 can't share the 12 clips .* allowed .*: 1, 2, 3, 6$"):
        begun.accumulation_of(4)
    resumed = Training(workers=3, accumulation=3, batch_size=2).with_global_batch(12)
    assert (resumed.global_batch, resumed.accumulation) == (12, 2)
    with pytest.raises(RecipeError, match=r"training\.workers: 5 can't share the 12 clips"):
        Training(workers=5, batch_size=2).with_global_batch(12)
    assert Training(workers={"min": 1, "max": 4}, batch_size=2).global_batch == 8
