"""Text-to-video models behind one interface, whatever their family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rayvideo.importing import quickly
from rayvideo.models.base import PARTS, ModelError, Part, VideoModel
from rayvideo.models.index import read_index
from rayvideo.models.posterior import Normaliser, Posterior
from rayvideo.own_modules import resolve_class

__all__ = ["PARTS", "ModelError", "Normaliser", "Part", "Posterior", "VideoModel", "load_model", "resolve_family"]

FAMILIES = {
    "TextToVideoSDPipeline": "rayvideo.models.modelscope:ModelScope",
    "CogVideoXPipeline": "rayvideo.models.cogvideox:CogVideoX",
    "WanPipeline": "rayvideo.models.wan:Wan",
}
"""Pipeline class in model_index.json -> our class for it, imported only where it is used."""


def load_model(
    path: str | Path,
    *,
    family: str | None = None,
    shift: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parts: Sequence[Part] = PARTS,
) -> VideoModel:
    """Load `parts` of the model in a folder or under a hub id, frozen and in eval mode.

    `dtype` is the denoiser's number format; VAE and text tower are fp32. `family` is the recipe's `model.family`: a
    class "module:Class" that can load this model. Without one model_index.json says which of our families it is.
    `shift` is the recipe's `model.shift`: of a flow's noise levels, in place of the checkpoint's.

    On device "meta" the parts have layers and shapes, but no weights: enough to ask how large latents are or what
    layers are called. That takes no memory, however large the model is. Headers of a folder's files are compared with
    it, so that missing, damaged and incomplete files are found; of a model on the hub only configurations are fetched.

    Raises:
        ModelError: if there is no such model, its family is unknown, or a file of it is missing, damaged or incomplete.
        RecipeError: the model takes no shift.
    """
    kind = _family_of(path) if family is None else resolve_family(family)
    weights = torch.device(device).type != "meta"
    model = kind.load(path, dtype=dtype, parts=parts, weights=weights).to(device)
    model.schedule = model.schedule.shifted(shift)
    return model


def resolve_family(family: str) -> type[VideoModel]:
    """The class that a recipe's `model.family` names.

    Raises:
        ModelError: if it is not of the form "module:Class", can't be imported, is no `VideoModel`, or lacks a method.
    """
    if ":" not in family:
        raise ModelError(f"model.family {family!r} is not of the form 'module:Class'")
    try:
        with quickly():  # it imports diffusers, transformers and peft
            return resolve_class(family, VideoModel, "rayvideo.models.VideoModel")  # type: ignore[type-abstract]
    except ImportError as error:
        raise ModelError(f"model.family {family!r} {error}; docs/models.md says what a family offers") from error


def _family_of(path: str | Path) -> type[VideoModel]:
    pipeline = read_index(path).get("_class_name")
    if pipeline not in FAMILIES:
        raise ModelError(
            f"{path}: no family for pipeline {pipeline!r}; known pipelines: {', '.join(FAMILIES)}. "
            "model.family may name a class of your own for it"
        )
    return resolve_family(FAMILIES[str(pipeline)])
