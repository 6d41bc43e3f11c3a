"""A folder such as jobs/prepare.py writes, of made-up clips: a test needs neither videos nor Ray for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayvideo.data.manifest import Entry
from rayvideo.data.prepared import fingerprint, write_rejected, write_summary
from rayvideo.data.tasks import tensor_array
from rayvideo.recipe import Recipe
from tests.tiny import TOKENS

CAPTIONS = ["", "red cat", "blue dog", "a very small snail"]


def save_prepared(recipe: Recipe, captions: Sequence[str] = CAPTIONS) -> None:
    """Write `recipe.data.prepared`: three clips of 8x8 latents, with captions for the text tower of tests.tiny.

    Their embeddings are written whole, as all were once.
    """
    folder, rng = Path(str(recipe.data.prepared)), np.random.default_rng(0)
    listed = [Entry(video=f"{number}.mp4", caption=caption) for number, caption in enumerate(captions[1:])]
    shape = (3, 4, recipe.data.frames, 8, 8)
    clips = {
        "id": pa.array(range(3)),
        "video": pa.array([entry["video"] for entry in listed]),
        "caption": pa.array(captions[1:]),
        "mean": tensor_array(5 * rng.standard_normal(shape, dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal(shape, dtype=np.float32) - 4),
    }
    embeddings = tensor_array(rng.standard_normal((len(captions), TOKENS, 32), dtype=np.float32))
    spoken = pa.table({"caption": pa.array(captions), "embedding": embeddings})
    (folder / "clips").mkdir(parents=True)
    pq.write_table(pa.table(clips), folder / "clips" / "0.parquet", row_group_size=1)
    pq.write_table(spoken, folder / "captions.parquet", row_group_size=1)
    write_rejected(folder / "rejected.jsonl", [])
    write_summary(str(folder), {"finished": True, "fingerprint": fingerprint(recipe, listed)})
