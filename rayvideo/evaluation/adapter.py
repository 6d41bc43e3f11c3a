"""A trained adapter in a folder or under a URI: brought to this machine, and checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.clipfolder import ADAPTER_FILES
from rayvideo.models import ModelError, VideoModel, load_model
from rayvideo.models.lora import WEIGHTS, load_adapter, refuse_untrained
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe
from rayvideo.storage import fetched, is_file, join


def check_generator(recipe: Recipe, adapter: str | None) -> None:
    """Refuse a model that can't make the recipe's clips, and an adapter that is none of this model's, or untrained.

    No weights of the model are read.

    Raises:
        EvaluationError, ModelError: naming the folder, and what is wrong with it.
        RecipeError: the model takes no `model.shift`.
    """
    for name in ADAPTER_FILES if adapter else ():
        if not is_file(join(str(adapter), name)):
            raise EvaluationError(f"{adapter} holds no {name}; train an adapter or name its folder")
    data, dtype = recipe.data, DTYPES.get(recipe.training.precision, torch.float32)  # a model may refuse fp16
    model = load_model(
        recipe.model.path, family=recipe.model.family, shift=recipe.model.shift, dtype=dtype, device="meta"
    )
    model.latent_shape(data.frames, data.height, data.width)
    if adapter is not None:
        check_adapter(model, adapter)


def check_adapter(model: VideoModel, adapter: str) -> None:
    """Refuse an adapter that does not fit a model of the meta device, or that changes nothing.

    Raises:
        ModelError: naming the folder.
    """
    with _fetched(adapter) as folder:
        load_adapter(model.denoiser, folder)
        refuse_untrained(folder, load_file(folder / WEIGHTS))


def put_on(model: VideoModel, adapter: str) -> None:
    """Give the model's denoiser the adapter of a folder or URI.

    Raises:
        ModelError: it does not fit.
    """
    with _fetched(adapter) as folder:
        model.denoiser = load_adapter(model.denoiser, folder).to(model.device)


@contextmanager
def _fetched(adapter: str) -> Iterator[Path]:
    with fetched(adapter) as folder:
        try:
            yield folder
        except ModelError as error:
            raise ModelError(str(error).replace(str(folder), adapter)) from error
