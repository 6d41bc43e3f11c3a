"""What Ray's actors make of blocks of clips and captions with parts of a model.

The top imports nothing heavy: an actor imports torch and the model's libraries when it is made, quickly.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayvideo.data.tasks import tensor_array
from rayvideo.data.trimmed import embedding_array
from rayvideo.importing import quickly
from rayvideo.sections import Model


class ClipEncoder:
    """Actor: frames to the mean and log-variance of the VAE's posterior."""

    def __init__(self, model: Model, device: str, shape: tuple[int, ...]) -> None:
        with quickly():
            from rayvideo.models import load_model
        self._model = load_model(model.path, family=model.family, device=device, parts=("vae",))
        self._shape = shape

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace column frames by mean and logvar, null where a clip has a reason."""
        import torch

        good = table.filter(pc.is_null(table["reason"]))
        valid = pc.is_null(table["reason"]).to_numpy()
        mean, logvar = (np.zeros((len(table), *self._shape), dtype=np.float32) for _ in range(2))
        if len(good):
            frames = torch.from_numpy(good["frames"].combine_chunks().to_numpy_ndarray().copy())
            posterior = self._model.encode_frames(frames.permute(0, 1, 4, 2, 3).float() / 255)
            mean[valid], logvar[valid] = posterior.mean.cpu().numpy(), posterior.logvar.cpu().numpy()
        kept = table.drop_columns(["frames"])
        return kept.append_column("mean", tensor_array(mean, valid)).append_column(
            "logvar", tensor_array(logvar, valid)
        )


class CaptionEncoder:
    """Actor: captions to prompt embeddings."""

    def __init__(self, model: Model, device: str) -> None:
        with quickly():
            from rayvideo.models import load_model
        self._model = load_model(model.path, family=model.family, device=device, parts=("text",))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append column embedding to captions."""
        embeddings = self._model.encode_prompts(table["caption"].to_pylist())
        return table.append_column("embedding", embedding_array(embeddings.float().cpu().numpy()))
