"""What of a model with two denoisers a training has to load: an expert that nothing asks stays where it is."""

from __future__ import annotations

from typing import Any

from rayvideo.evaluation.captions import shown
from rayvideo.models import Part, VideoModel, load_model
from rayvideo.models.experts import Experts, trained_expert
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe
from rayvideo.training import objectives

GIB = 2**30


def parts_for(recipe: Recipe) -> tuple[Part, ...]:
    """The parts that each worker runs. No weights are read for it."""
    return ("low", "vae") if _rests(recipe, _shapes(recipe)) and not shown(recipe) else ("denoiser", "vae")


def price_of_previews(recipe: Recipe) -> str | None:
    """What the workers load for previews alone, in words: these start from pure noise, where an edit may not."""
    model = _shapes(recipe)
    if not (shown(recipe) and _rests(recipe, model)):
        return None
    training = recipe.training
    high: Any = model.denoiser.high
    size = sum(weight.numel() for weight in high.parameters()) * DTYPES[training.precision].itemsize / GIB
    where = f"shared out among {training.workers} workers" if training.zero_stage == 3 else "on each worker"
    return (
        f"previews start from pure noise: for them alone the expert for much noise is loaded, {size:.1f} GiB {where}; "
        "evaluation.previews=0 saves that"
    )


def _rests(recipe: Recipe, model: VideoModel) -> bool:
    """Whether there is an expert for much noise that training neither asks nor tunes."""
    experts = model.denoiser
    if not isinstance(experts, Experts):
        return False
    chain = objectives.resolve(recipe.training.objective).chain(recipe, model.schedule)
    return trained_expert(experts, recipe.model.train) == "low" and experts.visited(chain.timesteps) == {"low"}


def _shapes(recipe: Recipe) -> VideoModel:
    model = recipe.model
    return load_model(model.path, family=model.family, shift=model.shift, device="meta", parts=("denoiser",))
