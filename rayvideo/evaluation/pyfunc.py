"""The tuned model as MLflow loads it: `mlflow.pyfunc.load_model(uri).predict(captions)`.

MLflow imports this module by its name and calls `_load_pyfunc`: the model is our code, a recipe and an adapter; nothing
is pickled. The base model is not copied: it is where the recipe says, or where `model_config` says instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from rayvideo import own_modules
from rayvideo.evaluation.adapter import put_on
from rayvideo.evaluation.generate import generate_clips, to_pixels
from rayvideo.models import load_model
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe, parse_recipe, shareable
from rayvideo.storage import absolute

if TYPE_CHECKING:
    import pandas as pd

RECIPE, ADAPTER = "recipe.yaml", "adapter"
"""What lies in the folder that MLflow keeps."""
EXAMPLE = "a red cat walks through the grass"


def defaults(recipe: Recipe) -> dict[str, int | float]:
    """What `predict` takes as params, with the values that it takes otherwise."""
    options = recipe.evaluation
    return {"seed": options.seeds[0], "steps": options.steps[0], "guidance": options.guidance}


def config(recipe: Recipe) -> dict[str, str]:
    """What `mlflow.pyfunc.load_model(..., model_config=...)` may change, with the values that hold otherwise.

    `device` "" is a GPU where there is one.
    """
    path = recipe.model.path  # a folder, or a name of Hugging Face's hub
    return {"model_path": absolute(path) if Path(path).exists() else path, "device": ""}


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the recipe into the folder that MLflow shall keep, where the adapter must lie too."""
    (folder / RECIPE).write_text(yaml.safe_dump(shareable(recipe), sort_keys=False), encoding="utf-8")


class Tuned:
    """Makes clips of captions; all parts of the model stay loaded, since captions come with every call."""

    def __init__(self, recipe: Recipe, adapter: str, device: torch.device) -> None:
        self._recipe = recipe
        self._model = load_model(
            recipe.model.path,
            family=recipe.model.family,
            shift=recipe.model.shift,
            dtype=DTYPES[recipe.training.precision],
            device=device,
        )
        put_on(self._model, adapter)

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> npt.NDArray[np.uint8]:
        """A clip for each caption: [N, F, H, W, 3]; the same as `jobs/generate.py` makes.

        Args:
            data: Captions in its one column; MLflow makes it of a list too.
            params: Some of what `defaults` lists.
        """
        chosen = defaults(self._recipe) | dict(params or {})
        captions, options = data.iloc[:, 0].tolist(), self._recipe.data
        clips = generate_clips(
            self._model,
            captions,
            [int(chosen["seed"])] * len(captions),
            steps=int(chosen["steps"]),
            guidance=float(chosen["guidance"]),
            negative_prompt=self._recipe.model.negative_prompt,
            frames=options.frames,
            height=options.height,
            width=options.width,
            batch_size=self._recipe.evaluation.batch_size,
            tiled=self._recipe.model.tiled_decoding,
        )
        return to_pixels(clips)


def _load_pyfunc(folder: str, model_config: Mapping[str, str]) -> Tuned:
    """Called by MLflow with the folder that it kept."""
    recipe = parse_recipe(yaml.safe_load(Path(folder, RECIPE).read_text(encoding="utf-8")))
    own_modules.make_importable(recipe, Path(folder, RECIPE))  # a family of the user's lies in the current directory
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": model_config["model_path"]})})
    device = model_config["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    return Tuned(recipe, str(Path(folder, ADAPTER)), torch.device(device))
