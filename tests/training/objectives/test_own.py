"""An objective of the user's own: the one that docs/objectives.md shows, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo import own_modules
from rayvideo.errors import RecipeError
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.sections import Lora
from rayvideo.training import objectives
from rayvideo.training.meters import Clock
from rayvideo.training.objective import Objective
from tests.documents import block_of
from tests.training.objectives.test_reward import EMPTY, clips


class NotAnObjective:
    pass


class Unfinished(Objective[Any]):
    needs_gradient = False


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_objective.py").write_text(block_of("docs/objectives.md", "python", "EarlyLook"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_objective", raising=False)
    own_modules.make_importable(recipe_with("my_objective:EarlyLook"), tmp_path / "recipe.yaml")
    return "my_objective:EarlyLook"


def recipe_with(objective: str, **options: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "unused", "checkpointing": "none"},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [{"name": "judge"}], "segments": 2},
            "training": {"objective": objective, "objective_options": options},
        }
    )


def test_the_documents_objective_makes_clips_with_a_gradient(own, tiny_pipeline):
    recipe = recipe_with(own, early=2)
    assert objectives.check(recipe).__name__ == "EarlyLook"
    model = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    model.denoiser = add_lora(model.denoiser, Lora(), seed=0)
    objective = objectives.build(recipe, model, EMPTY, Clock(torch.device("cpu")))
    made = objective.make(clips(1, 2), 1, 0)
    assert made.pixels.shape == (2, 2, 3, 64, 64)
    made.pixels.square().mean().backward()
    assert any(w.grad is not None and w.grad.any() for w in lora_parameters(model.denoiser).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"late": 1},
            r"^training\.objective_options\.late: 1 is not allowed by 'my_objective:EarlyLook': Extra",
        ),
        ({"early": 0}, r"^training\.objective_options\.early: 0 is not allowed .* greater than 0"),
        ({"early": 5}, r"^early 5 must be below editing\.steps 5$"),
    ],
)
def test_options_that_do_not_fit_are_refused(own, options, message):
    with pytest.raises(RecipeError, match=message):
        objectives.check(recipe_with(own, **options))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing:Here", r"^training\.objective: 'nothing:Here' can't be imported: No module .* beside the recipe"),
        (
            f"{__name__}:NotAnObjective",
            r"NotAnObjective' is not a subclass of rayvideo\.training",
        ),
        (f"{__name__}:Unfinished", r"Unfinished' lacks make\(\), updates\(\)$"),
    ],
)
def test_what_is_no_objective_is_refused_by_name(name, message):
    with pytest.raises(RecipeError, match=message):
        objectives.check(recipe_with(name))


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(RecipeError, match=r"^training\.objective: 'magic' .*: 'ddpo', 'draft', 'reward', 'rwr', or"):
        recipe_with("magic")


def test_options_of_an_objective_of_ones_own_need_one():
    with pytest.raises(RecipeError, match=r"training\.objective_options .* 'reward'"):
        recipe_with("reward", early=1)
