"""CONTRIBUTING's diffs: a family, an objective, a judge of frames and one of clips, each of them one file."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo import own_modules
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import check_judge
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.serving.local import LocalPool
from rayvideo.training import objectives
from rayvideo.training.meters import Clock
from tests.documents import blocks
from tests.training.objectives.test_reward import EMPTY, clips

DIFFS = [block.text for block in blocks() if (block.page, block.kind) == ("CONTRIBUTING.md", "diff")]
Apply = Callable[..., Recipe]


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Applies the diff that makes a file to an empty folder; the recipe that names it, ready to be used there."""

    def applied(file: str, **changes: Any) -> Recipe:
        (diff,) = (text for text in DIFFS if f"+++ b/{file}\n" in text)
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
        assert [path.name for path in tmp_path.iterdir()] == [file]
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, file.removesuffix(".py"), raising=False)
        tree: dict[str, Any] = {
            "model": {"path": "unused", "checkpointing": "none"},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [{"name": "judge"}], "segments": 2},
        }
        recipe = parse_recipe(tree | changes)
        own_modules.make_importable(recipe, tmp_path / "recipe.yaml")
        return recipe

    return applied


def test_each_diff_makes_one_new_file() -> None:
    assert len(DIFFS) == 4
    for diff in DIFFS:
        assert re.findall(r"^--- (.*)$", diff, re.MULTILINE) == ["/dev/null"]


def test_a_family(apply: Apply, tiny_pipeline: Path) -> None:
    recipe = apply("calm.py", model={"path": str(tiny_pipeline), "family": "calm:Calm"})
    model, usual = (load_model(tiny_pipeline, family=name, parts=("vae",)) for name in (recipe.model.family, None))
    pixels = torch.rand(1, 4, 3, 64, 64)
    latents, others = model.encode_frames(pixels).mode(), usual.encode_frames(pixels).mode()
    torch.testing.assert_close(latents, others / 2)
    with torch.no_grad():
        torch.testing.assert_close(model.decode_frames(latents), usual.decode_frames(others))


def test_an_objective(apply: Apply, tiny_pipeline: Path) -> None:
    recipe = apply("gentle.py", training={"objective": "gentle:Gentle", "objective_options": {"share": 1.0}})
    assert objectives.check(recipe).__name__ == "Gentle"
    model, batch = load_model(tiny_pipeline, parts=("denoiser", "vae")), clips(1, 2)
    model.denoiser = add_lora(model.denoiser, recipe.model.lora, seed=0)
    made = objectives.build(recipe, model, EMPTY, Clock(torch.device("cpu"))).make(batch, 1, 0)
    clean = model.decode_frames(model.posterior(batch.mean, batch.logvar).mode(), made.drawn)
    torch.testing.assert_close(made.pixels, clean.clamp(0, 1), atol=1e-4, rtol=1e-4)
    half = apply_share(recipe, 0.5)
    objectives.build(half, model, EMPTY, Clock(torch.device("cpu"))).make(batch, 1, 0).pixels.sum().backward()
    assert any(w.grad is not None and w.grad.any() for w in lora_parameters(model.denoiser).values())


def apply_share(recipe: Recipe, share: float) -> Recipe:
    training = recipe.training.model_copy(update={"objective_options": {"share": share}})
    return recipe.model_copy(update={"training": training})


@pytest.mark.parametrize(("file", "kind"), [("redness.py", "redness:score"), ("stillness.py", "stillness:Stillness")])
def test_judges(apply: Apply, file: str, kind: str) -> None:
    recipe = apply(file, reward={"judges": [{"name": "judge", "type": kind}], "segments": 2})
    (judge,) = recipe.reward.judges
    assert check_judge("reward.judges.0", judge, recipe.data).differentiable
    reward = ClipReward(LocalPool([judge]), recipe.reward, recipe.data.frames, recipe.data.fps)
    drawn = torch.tensor([[0, 2], [1, 3]])
    shown = reward.shown(drawn)
    pixels = torch.rand(2, shown.shape[1], 3, 8, 8, requires_grad=True)
    judged = reward.result(reward.submit(pixels, shown, drawn, ["a cat", "a dog"], gradient=True))
    assert judged.scores["judge"].shape == ((2, 2) if kind == "redness:score" else (2,))
    (slope,) = torch.autograd.grad(judged.rewards.sum(), pixels)
    assert slope.any()
