"""A family of the user's own, named by `model.family`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayvideo.data.prepared import ENCODING_PARTS, fingerprint, model_digest
from rayvideo.models import ModelError, VideoModel, load_model
from rayvideo.models.modelscope import ModelScope
from rayvideo.recipe import Recipe, parse_recipe


class Own(ModelScope):
    """Loads what ModelScope loads."""


class Unfinished(VideoModel):
    """Offers less than `load_model` and the jobs need."""


class Other:
    """Is no model."""


def recipe_with(path: Path, family: str | None) -> Recipe:
    model = {"path": str(path), "family": family}
    return parse_recipe(
        {"model": model, "data": {"manifest": "clips.txt"}, "reward": {"judges": [{"name": "judge"}]}},
    )


def test_a_named_family_loads_the_model_whatever_its_index_says(tiny_pipeline: Path) -> None:
    model = load_model(tiny_pipeline, family=f"{__name__}:Own")
    assert type(model) is Own
    assert type(load_model(tiny_pipeline, parts=("vae",))) is ModelScope
    shapes = load_model(tiny_pipeline, family=f"{__name__}:Own", device="meta", parts=("vae",))
    assert type(shapes) is Own
    assert shapes.device == torch.device("meta")


def test_it_need_not_have_an_index(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").symlink_to(tiny_pipeline / "vae")
    (tmp_path / "scheduler").symlink_to(tiny_pipeline / "scheduler")
    assert load_model(tmp_path, family=f"{__name__}:Own", parts=("vae",)).latent_shape(1, 64, 64) == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("ModelScope", "is not of the form 'module:Class'"),
        ("nowhere_at_all:Family", "can't be imported: No module named 'nowhere_at_all'; a module of yours must lie"),
        (f"{__name__}:Absent", "can't be imported: module '.*' has no attribute 'Absent'"),
        (f"{__name__}:Other", "is not a subclass of rayvideo.models.VideoModel"),
        (f"{__name__}:recipe_with", "is not a subclass of rayvideo.models.VideoModel"),
        (f"{__name__}:Unfinished", r"lacks decode_frames\(\), enable_checkpointing\(\), .*; docs/models.md says"),
    ],
)
def test_a_family_that_cannot_serve_is_refused_in_a_line(tiny_pipeline: Path, family: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"^model.family '{family}' {message}") as error:
        load_model(tiny_pipeline, family=family)
    assert "\n" not in str(error.value)


def test_what_was_prepared_by_one_family_is_none_of_anothers(tiny_pipeline: Path) -> None:
    recipes = [recipe_with(tiny_pipeline, family) for family in (None, "mine:Own", "yours:Own")]
    prints = [fingerprint(recipe) for recipe in recipes]
    assert len({str(one["model"]) for one in prints}) == 3
    assert all(one.keys() == prints[0].keys() for one in prints)
    hub = recipe_with(Path("a/model"), None)
    assert model_digest(hub.model, ENCODING_PARTS) == "a/model", "folders of before must still be known"
