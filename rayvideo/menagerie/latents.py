"""Drawn clips as training reads them, for measurements that go without Ray Data."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.data.trimmed import embedding_array
from rayvideo.evaluation.generate import embed_captions
from rayvideo.menagerie.build import training_clips
from rayvideo.menagerie.world import FRAMES
from rayvideo.models import VideoModel


def drawn_table(
    model: VideoModel, count: int, folder: Path, length: int = FRAMES, degraded: float = 0.8
) -> LatentTable:
    """Posteriors of `count` clips, a share of them degraded, and their captions' embeddings; two files in `folder`."""
    clips, captions = training_clips(count, 100, length, degraded)
    with torch.no_grad():
        posteriors = [model.encode_frames(clip[None]) for clip in clips]
    columns = {
        "id": pa.array(range(count)),
        "video": pa.array([str(number) for number in range(count)]),
        "caption": pa.array(captions),
        "mean": tensor_array(torch.cat([posterior.mean for posterior in posteriors]).numpy()),
        "logvar": tensor_array(torch.cat([posterior.logvar for posterior in posteriors]).numpy()),
    }
    spoken = embed_captions(model, captions)
    texts = {"caption": pa.array(list(spoken)), "embedding": embedding_array([one.numpy() for one in spoken.values()])}
    for name, content in (("clips", columns), ("captions", texts)):
        pq.write_table(pa.table(content), folder / f"{name}.parquet", row_group_size=1, **FORMAT)
    places = {caption: Place(f"{folder}/captions.parquet", row) for row, caption in enumerate(spoken)}
    return LatentTable([Place(f"{folder}/clips.parquet", row) for row in range(count)], places, [])
