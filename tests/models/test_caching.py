"""Blocks that are left out in steps without a gradient: how many, what it changes, and that it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.models import ModelError, VideoModel, load_model
from rayvideo.models.lora import add_lora
from rayvideo.sections import Lora
from tests import tiny_cogvideox, tiny_wan


@pytest.fixture(scope="module", params=["wan", "cogvideox"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    save = {"wan": tiny_wan.save_pipeline, "cogvideox": tiny_cogvideox.save_pipeline}[request.param]
    loaded = load_model(save(tmp_path_factory.mktemp(request.param)))
    loaded.denoiser = add_lora(loaded.denoiser, Lora(), seed=0)
    return loaded


@torch.no_grad()
def rolled_out(model: VideoModel, threshold: float | None) -> tuple[Tensor, int]:
    """Latents at a chain's end, and how often its last block was run."""
    size = (5, 32, 32) if type(model).__name__ == "Wan" else (9, 32, 48)
    latents = torch.randn(1, *model.latent_shape(*size), generator=torch.Generator().manual_seed(0))
    predict = model.guided(model.encode_prompts(["a red cat"]), model.encode_prompts([""]), 3.0)
    blocks = [module for name, module in model.denoiser.named_modules() if name.endswith("blocks.1")]
    calls: list[int] = []
    watch = blocks[0].ff if hasattr(blocks[0], "ff") else blocks[0].ffn
    handle = watch.register_forward_hook(lambda *_: calls.append(1))
    chain = model.schedule.chain(8)
    if threshold is None:
        out = editing.run_chain(predict, latents, model.schedule, chain)
    else:
        with model.cached(threshold):
            out = editing.run_chain(predict, latents, model.schedule, chain)
    handle.remove()
    return out, len(calls)


def test_blocks_are_left_out_where_the_first_says_little_new(model):
    usual, all_calls = rolled_out(model, None)
    assert all_calls == 8
    exact, calls = rolled_out(model, 1e-9)
    assert calls == 8
    torch.testing.assert_close(exact, usual, rtol=1e-4, atol=1e-5)
    fast, calls = rolled_out(model, 1e9)
    assert calls == 1
    assert not torch.allclose(fast, usual, atol=1e-3)
    again, calls = rolled_out(model, None)  # nothing is left of it
    assert calls == 8
    assert torch.equal(again, usual)


def test_a_family_without_it_says_so(tiny_pipeline: Path):
    model = load_model(tiny_pipeline, parts=("denoiser",))
    with pytest.raises(ModelError, match=r"editing\.rollout_cache 0\.1: ModelScope does not offer it; allowed: null"):
        model.cached(0.1)
