"""DeepSpeed's engine around two denoisers, of which one may rest for a whole step."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from rayvideo.models.experts import Experts
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.sections import Lora, Training
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from tests.training.network import Net

pytestmark = pytest.mark.usefixtures("process_group")


class Denoiser(Net):
    """Called as diffusers' denoisers are."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, *, return_dict: Literal[False]
    ) -> tuple[Tensor]:
        return (super().forward(latents + prompt_embeds),)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_expert_that_rests_stays_as_it_is_and_learns_later(stage: int) -> None:
    torch.manual_seed(0)
    adapted = add_lora(Experts(Denoiser(), Denoiser(), 875.0), Lora(rank=2, targets=("to_q", "to_k")), seed=0)
    for weight in lora_parameters(adapted).values():
        nn.init.normal_(weight.data)
    engine = DeepSpeedEngine(adapted, Training(zero_stage=stage, batch_size=4))
    clips = torch.randn(4, 8)
    for timesteps, learn in ((torch.tensor(12), {"low"}), (torch.tensor([900, 12, 12, 900]), {"high", "low"})):
        before = {name: weight.clone() for name, weight in engine.adapter().items()}
        engine.backward(engine.denoiser(clips, timesteps, clips, return_dict=False)[0].square().mean())
        assert engine.step(0.1).applied
        moved = {
            name.split(".")[2] for name, weight in engine.adapter().items() if not torch.equal(weight, before[name])
        }
        assert moved == learn
    engine.close()
