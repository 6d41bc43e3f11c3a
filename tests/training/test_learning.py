"""A run that learns nothing is stopped after its first update, and one that learns in part is told of the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.sections import Lora, Training
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.learning import FirstUpdates, NothingLearnedError
from rayvideo.training.objectives.ddpo import Ddpo
from rayvideo.training.schedule import learning_rate
from tests.training.network import Net
from tests.training.test_objectives import Run, recipe_for, table  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("process_group")


class Cut(Net):
    """No gradient reaches its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_k(torch.tanh(self.to_q(x)).detach())


def updated(network: nn.Module, stage: int, scale: float = 1.0, *, begun: bool = False) -> dict[str, Tensor]:
    """The adapter's gradients after one update, in the first step of a warm-up.

    Args:
        begun: Whether the adapter begins from another one, so that its B is not 0, and decays.
    """
    options = Training(zero_stage=stage, batch_size=4, warmup_steps=1000, weight_decay=1e4 if begun else 0.0)
    torch.manual_seed(0)
    adapted = add_lora(network, Lora(rank=2, targets=("to_q", "to_k")), seed=0)
    if begun:
        for weight in lora_parameters(adapted).values():
            nn.init.normal_(weight)
    engine = DeepSpeedEngine(adapted, options)
    before = {name: weight.clone() for name, weight in engine.adapter().items()}
    engine.backward(scale * engine.denoiser(torch.randn(4, 8)).square().mean())
    engine.step(learning_rate(options, 1))
    after = engine.adapter()
    assert not begun or not any(torch.equal(before[name], after[name]) for name in after)
    gradients = engine.gradients()
    engine.close()
    return gradients


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("begun", [False, True])
def test_every_pair_moves_with_the_first_update(stage, begun):
    first = FirstUpdates(1, done=False)
    assert first.watching
    assert first.look(1, updated(Net(), stage, begun=begun)) is None
    assert not first.watching


@pytest.mark.parametrize(("stage", "begun"), [(0, False), (2, False), (3, False), (2, True), (3, True)])
def test_pairs_that_stay_where_they_are_are_named(stage, begun):
    first = FirstUpdates(1, done=False)
    said = first.look(1, updated(Cut(), stage, begun=begun))
    assert said is not None
    assert "1 of the adapter's 2 pairs of matrices have not moved" in said
    assert "no gradient reaches to_q; leave" in said
    assert not first.watching


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("begun", [False, True])
def test_an_adapter_that_does_not_move_stops_the_run(stage, begun):
    with pytest.raises(NothingLearnedError, match=r"step 1: the adapter has not moved: .* any of its 2 pairs"):
        FirstUpdates(1, done=False).look(1, updated(Net(), stage, scale=0.0, begun=begun))


def test_samples_that_are_rewarded_alike_may_come_before_others():
    first, still = FirstUpdates(Ddpo.patience, done=False), updated(Net(), 0, scale=0.0)
    for step in range(1, Ddpo.patience):
        assert first.look(step, still) is None
        assert first.watching
    with pytest.raises(NothingLearnedError, match="step 10"):
        first.look(10, still)
    first = FirstUpdates(Ddpo.patience, done=False)
    assert first.look(1, still) is None
    assert first.look(2, updated(Net(), 0)) is None
    assert not first.watching


def test_a_run_that_goes_on_has_moved_before():
    assert not FirstUpdates(1, done=True).watching


@pytest.mark.parametrize("options", [{}, {"objective": "draft"}, {"objective": "rwr"}, {"objective": "ddpo"}])
def test_a_real_model_moves_as_a_whole(tiny_pipeline, table, options):  # noqa: F811
    run = Run(recipe_for(tiny_pipeline, **options), table)
    run.train(1)
    assert run.trainer.first_sent is not None
    assert run.trainer.first_sent.shape == (4, 1, 3, 32, 32)
    first = FirstUpdates(run.objective.patience, done=False)
    assert first.look(1, run.engine.gradients()) is None
    assert not first.watching
    run.engine.close()


def test_a_judge_without_weight_teaches_nothing(tiny_pipeline, table):  # noqa: F811
    run = Run(recipe_for(tiny_pipeline, weight=0.0), table)
    run.train(1)
    with pytest.raises(NothingLearnedError, match="no gradient of the judges reaches any of its"):
        FirstUpdates(1, done=False).look(1, run.engine.gradients())
    run.engine.close()
