"""Which of two experts a training loads, and what of it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo.models import ModelError, load_model
from rayvideo.models.experts import Unloaded
from rayvideo.models.lora import add_lora, load_adapter, lora_parameters, save_adapter
from rayvideo.recipe import Recipe
from rayvideo.sections import Lora
from rayvideo.training.needed import parts_for, price_of_previews
from tests import tiny_wan
from tests.training.test_wan import a14b, recipe_with

__all__ = ["a14b"]
WHOLE, LOW = ("denoiser", "vae"), ("low", "vae")
EDIT = {"editing__strength": 0.3}
"""From a level below the boundary."""


def recipe_of(a14b: Path, folder: Path, *, previews: int | None = None, **changes: Any) -> Recipe:
    """A recipe, with a caption to preview if their number is given."""
    recipe = recipe_with(a14b, folder, **changes)
    if previews is None:
        return recipe
    (folder / "captions.txt").write_text("a cat\n")
    options = {"sets": {"held_out": str(folder / "captions.txt")}, "previews": previews}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=options)})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (EDIT, LOW),
        (EDIT | {"previews": 0}, LOW),
        (EDIT | {"previews": 1}, WHOLE),
        (EDIT | {"model__train": "both"}, WHOLE),
        ({"editing__strength": 0.6}, WHOLE),
        ({"editing__strength": 0.6, "model__shift": 1.0}, LOW),
        (EDIT | {"training__objective": "draft"}, WHOLE),
    ],
)
def test_an_expert_that_nothing_asks_is_not_loaded(
    a14b: Path, tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    assert parts_for(recipe_of(a14b, tmp_path, **changes)) == parts


def test_a_model_with_one_denoiser_is_loaded_whole(tmp_path: Path) -> None:
    path = tiny_wan.save_pipeline(tmp_path / "model", "2.1")
    recipe = recipe_of(path, tmp_path, previews=1, **EDIT)
    assert parts_for(recipe) == WHOLE
    assert price_of_previews(recipe) is None


def test_one_line_says_what_previews_take(a14b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load_model(a14b, parts=("denoiser",))
    weights = sum(weight.numel() for weight in model.denoiser.high.parameters())
    monkeypatch.setattr("rayvideo.training.needed.GIB", 4 * weights / 2)
    training = {"training__precision": "fp32", "training__zero_stage": 3, "training__workers": 4}
    said = price_of_previews(recipe_of(a14b, tmp_path, previews=1, **EDIT, **training))
    assert said == (
        "previews start from pure noise: for them alone the expert for much noise is loaded, 2.0 GiB shared out among "
        "4 workers; evaluation.previews=0 saves that"
    )
    training = {"training__precision": "bf16"}
    said = price_of_previews(recipe_of(a14b, tmp_path, previews=1, **EDIT, **training))
    assert "1.0 GiB on each worker" in str(said)
    assert price_of_previews(recipe_of(a14b, tmp_path, previews=0, **EDIT)) is None
    assert price_of_previews(recipe_of(a14b, tmp_path, previews=1, editing__strength=0.6)) is None


def test_one_expert_alone_learns_and_predicts_as_beside_the_other(a14b: Path, tmp_path: Path) -> None:
    both: Any = load_model(a14b, parts=("denoiser",))
    low: Any = load_model(a14b, parts=("low",))
    assert isinstance(low.denoiser.high, Unloaded)
    assert sum(weight.numel() for weight in low.denoiser.parameters()) * 2 == sum(
        weight.numel() for weight in both.denoiser.parameters()
    )
    latents = torch.randn(1, tiny_wan.CHANNELS, 2, 4, 4)
    text = torch.randn(1, 8, tiny_wan.TEXT_WIDTH)
    found = []
    for model in (both, low):
        model.enable_checkpointing()
        model.denoiser = add_lora(model.denoiser, Lora(rank=2), 0, within="low")
        predicted = model.predict(latents, torch.tensor(500.0), text)
        predicted.square().mean().backward()
        gradients = {name: weight.grad for name, weight in lora_parameters(model.denoiser).items()}
        found.append((predicted.detach(), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    save_adapter(low.denoiser, tmp_path / "adapter")
    load_adapter(load_model(a14b, parts=("denoiser",)).denoiser, tmp_path / "adapter")  # refuses what does not fit
    with pytest.raises(ModelError, match=r"^timestep 900 is the other expert's, which was not loaded"):
        low.predict(latents, torch.tensor(900.0), text)
