"""Compiled blocks: the same numbers, one compilation for all timesteps, beside LoRA and checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.sections import Lora
from tests import tiny_wan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.save_pipeline(tmp_path_factory.mktemp("wan"))


def test_blocks_are_compiled_once_for_all_timesteps_and_give_the_same(folder):
    torch.manual_seed(0)
    text = torch.randn(2, 512, 16)
    latents = None
    made: dict[bool, list[Tensor]] = {}
    for compiled in (False, True):
        model = load_model(folder, parts=("denoiser", "vae"))
        latents = torch.randn(2, *model.latent_shape(5, 32, 32)) if latents is None else latents
        text = torch.randn(2, 512, model.prompt_width) if text.shape[-1] != model.prompt_width else text
        if compiled:
            counters.clear()
            model.compile_blocks()
        model.enable_checkpointing()
        model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
        made[compiled] = []
        graphs = []
        for timestep in (900.0, 500.5, 20.25):
            with torch.no_grad():
                out = model.predict(latents, torch.tensor(timestep), text)
            with_graph = model.predict(latents, torch.tensor(timestep), text)
            with_graph.square().mean().backward()
            made[compiled] += [out, with_graph.detach()]
            graphs.append(counters["stats"]["unique_graphs"])
        made[compiled] += [w.grad for w in lora_parameters(model.denoiser).values() if w.grad is not None]
        if compiled:
            assert graphs[0] > 0
            assert len(set(graphs)) == 1
    assert len(made[True]) == len(made[False])
    for ours, plain in zip(made[True], made[False], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
