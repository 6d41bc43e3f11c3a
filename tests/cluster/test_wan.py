"""The whole job on a model with a causal VAE and two experts: clips, latents, workers, an adapter for diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from rayvideo.models import export
from rayvideo.models.lora import untrained
from rayvideo.recipe import parse_recipe
from rayvideo.training.launch import finetune
from rayvideo.training.needed import parts_for
from tests import tiny_wan

pytestmark = pytest.mark.usefixtures("ray_cluster")


def bright(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The judge."""
    return frames.mean((1, 2, 3))


LARGE: dict[str, dict[str, Any]] = {
    "model": {"shift": 1.0},  # the chain starts below the boundary
    "training": {"zero_stage": 3, "offload": "cpu"},
    "evaluation": {"previews": 0},
}
"""How a model that hardly fits is tuned: in shares, without the expert that nothing asks."""


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["whole", "large"])
def test_two_workers_tune_the_low_expert_of_two(
    tmp_path: Path, tiny_clips: Path, changes: dict[str, dict[str, Any]]
) -> None:
    pipeline = tiny_wan.save_pipeline(tmp_path / "model", "A14B")
    (tmp_path / "captions.txt").write_text("red ball\n")
    tree: dict[str, Any] = {
        "model": {"path": str(pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 9, "height": 32, "width": 32},
        "editing": {"steps": 5, "grad_steps": 2, "offset_noise": 0.0},
        "reward": {"judges": [{"name": "bright", "type": f"{__name__}:bright"}], "segments": 3},
        "training": {"precision": "fp32", "steps": 2, "workers": 2, "batch_size": 1, "lr": 1e-2, "warmup_steps": 0},
        "evaluation": {"sets": {"in": str(tmp_path / "captions.txt")}, "steps": 2, "previews": 1},
        "tracking": {"run_name": "wan"},
        "storage": str(tmp_path / "runs"),
    }
    recipe = parse_recipe(tree | {name: tree[name] | section for name, section in changes.items()})
    assert parts_for(recipe) == (("low" if changes else "denoiser"), "vae")
    folder = Path(finetune(recipe)["run_folder"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["gradient_norm"] > 0 for line in lines)
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[2] for name in adapter} == {"low"}
    assert not untrained(adapter)
    family = export.family_for(pipeline, folder / "adapter")
    (file,) = export.export_diffusers(folder / "adapter", tmp_path / "lora.safetensors", family)
    theirs = WanPipeline.from_pretrained(pipeline)
    theirs.load_lora_weights(file, load_into_transformer_2=True)
    assert not any("lora" in name for name, _ in theirs.transformer.named_parameters())
    bound = dict(theirs.transformer_2.named_parameters())
    for name, weight in load_file(file).items():
        ours = name.removeprefix("transformer.").replace(".weight", ".default_0.weight")
        assert torch.equal(bound[ours].float(), weight)
