"""Text-to-video models behind one interface, whatever their family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from rayvideo.models.base import PARTS, ModelError, Part, Posterior, VideoModel

__all__ = ["PARTS", "ModelError", "Part", "Posterior", "VideoModel", "load_model"]

FAMILIES = {"TextToVideoSDPipeline": "rayvideo.models.modelscope:ModelScope"}
"""Pipeline class in model_index.json -> our class for it."""


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parts: Sequence[Part] = PARTS,
) -> VideoModel:
    """Load `parts` of the model in a folder or under a hub id, frozen and in eval mode.

    `dtype` is the denoiser's number format; VAE and text tower are fp32. model_index.json says which family it is.

    On device "meta" the parts have layers and shapes, but no weights: enough to ask how large latents are or what
    layers are called. That takes no memory, however large the model is. Headers of a folder's files are compared with
    it, so that missing, damaged and incomplete files are found; of a model on the hub only configurations are fetched.

    Raises:
        ModelError: if there is no such model, its family is unknown, or a file of it is missing, damaged or incomplete.
    """
    pipeline = _read_index(path).get("_class_name")
    if pipeline not in FAMILIES:
        raise ModelError(f"{path}: no family for pipeline {pipeline!r}; known pipelines: {', '.join(FAMILIES)}")
    module, _, name = FAMILIES[pipeline].partition(":")
    family: type[VideoModel] = getattr(import_module(module), name)
    weights = torch.device(device).type != "meta"
    return family.load(path, dtype=dtype, parts=parts, weights=weights).to(device)


def _read_index(path: str | Path) -> dict[str, object]:
    try:
        local = Path(path) / "model_index.json"
        index = local if Path(path).is_dir() else Path(hf_hub_download(str(path), "model_index.json"))
        found = json.loads(index.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} stands in it")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: neither a folder with model_index.json nor a hub id that can be reached: {error}"
        ) from error
