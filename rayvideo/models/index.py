"""model_index.json: what a pipeline folder or hub id says of itself."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import hf_hub_download

from rayvideo.models.base import ModelError


def read_index(path: str | Path) -> dict[str, object]:
    """The content of a pipeline's model_index.json: its class, its parts and its settings.

    Raises:
        ModelError: if there is none, or it is damaged.
    """
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
