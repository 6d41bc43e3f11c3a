"""A causal VAE and two experts in training: what the recipe asks of them, and what of it is refused before a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayvideo.data.table import Batch
from rayvideo.errors import RecipeError, UserError
from rayvideo.models import load_model
from rayvideo.models.experts import trained_expert
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.training import objectives
from rayvideo.training.meters import Clock
from rayvideo.training.preflight import check
from tests import tiny_wan
from tests.training.test_preflight import Flat

JUDGE = {"name": "judge", "type": f"{__name__}:Bright"}


class Bright(Flat):
    """Reads nothing from a file."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Bright:
        return cls()


@pytest.fixture(scope="module")
def a14b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.save_pipeline(tmp_path_factory.mktemp("models") / "a14b", "A14B")


def recipe_with(path: Path, folder: Path, **changes: Any) -> Recipe:
    """A recipe that passes, unless `changes` (dotted keys with `__`) spoil it."""
    (folder / "list.txt").write_text("a.mp4|||cat\n")
    tree: dict[str, Any] = {
        "model": {"path": str(path)},
        "data": {"manifest": str(folder / "list.txt"), "frames": 9, "height": 32, "width": 32},
        "reward": {"judges": [JUDGE], "segments": 1},
        "editing": {"steps": 20, "strength": 0.6, "offset_noise": 0.0},
        "training": {},
    }
    for key, value in changes.items():
        section, _, option = key.partition("__")
        tree[section][option] = value
    return parse_recipe(tree)


def test_a_complete_recipe_passes(a14b: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check(recipe_with(a14b, tmp_path))
        check(recipe_with(a14b, tmp_path, model__train="both"))
    assert "adapter: 16 layers" in caplog.text, "of one expert"
    assert "adapter: 32 layers" in caplog.text


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"data__frames": 16}, UserError, r"^data\.frames 16: .* the nearest are 13 or 17$"),
        ({"data__height": 40}, UserError, r"^data\.height 40: .* the nearest are 32 or 48$"),
        ({"training__precision": "fp16"}, UserError, r"^training\.precision 'fp16': .* allowed: 'bf16', 'fp32'$"),
        (
            {"model__train": "high", "editing__strength": 0.3},
            RecipeError,
            r"^model\.train 'high': the chain starts at timestep \d+, below this model's boundary 875, .* here: 'low'",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    a14b: Path, tmp_path: Path, change: dict[str, Any], kind: type[UserError], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        check(recipe_with(a14b, tmp_path, **change))
    assert "\n" not in str(error.value)


def clip(model: Any) -> Batch:
    mean = torch.randn(1, *model.latent_shape(9, 32, 32), generator=torch.Generator().manual_seed(0))
    embeddings = torch.randn(1, 512, tiny_wan.TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    return Batch([0], ["a"], ["a cat"], mean, mean - 4, embeddings)


@pytest.mark.parametrize(("context", "reached"), [(0, {2}), (1, {1, 2}), (None, {0, 1, 2})])
def test_frames_are_judged_with_the_context_that_the_recipe_gives(
    a14b: Path, tmp_path: Path, context: int | None, reached: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model(a14b, parts=("denoiser", "vae"))
    recipe = recipe_with(a14b, tmp_path, model__vae_context=context)
    model.denoiser = add_lora(model.denoiser, recipe.model.lora, 0, within=trained_expert(model.denoiser, None))
    for weight in lora_parameters(model.denoiser).values():
        torch.nn.init.normal_(weight, std=0.1)
    seen: list[Tensor] = []
    restore = type(model.normaliser).restore

    def watched(self: Any, latents: Tensor) -> Tensor:
        latents.retain_grad()
        seen.append(latents)
        return restore(self, latents)

    monkeypatch.setattr(type(model.normaliser), "restore", watched)
    empty = torch.zeros(1, 512, tiny_wan.TEXT_WIDTH)
    objective = objectives.build(recipe, model, empty, Clock(torch.device("cpu")), lambda drawn: torch.tensor([[8]]))
    objective.make(clip(model), 1, 0).pixels.square().sum().backward()
    (latents,) = seen
    assert latents.grad is not None
    assert {int(frame) for frame in latents.grad.ne(0).any(dim=(0, 1, 3, 4)).nonzero()} == reached
    gradients = {name: weight.grad for name, weight in lora_parameters(model.denoiser).items()}
    assert all(".low." in name and gradient is not None and gradient.any() for name, gradient in gradients.items())
