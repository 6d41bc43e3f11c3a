"""What Ray's tasks run on blocks of clips.

Nothing here imports torch, so that the processes of tasks start fast and stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayvideo.data.video import ClipError, read_clip
from rayvideo.sections import Data
from rayvideo.storage import join, replacing

# How Parquet files are written. Latents are noise, which neither compresses nor repeats. Files have one row in each row
# group, the least that can be read at once.
FORMAT: dict[str, Any] = {"compression": "none", "use_dictionary": False}
PROCESS_BYTES = 256 * 2**20  # memory of a decoding process, without the pixels


def decoding_bytes(data: Data) -> int:
    """Bytes that a task reserves to decode a block of clips; Ray runs no more at once than a machine has memory for."""
    return PROCESS_BYTES + 2 * data.batch_size * data.frames * data.height * data.width * 3


def decode(table: pa.Table, data: Data) -> pa.Table:
    """Append columns frames, uint8 [F, H, W, 3], and reason, why a clip is dropped; in a row one of them is null."""
    frames = np.zeros((len(table), data.frames, data.height, data.width, 3), dtype=np.uint8)
    reasons: list[str | None] = [None] * len(table)
    for row, (video, caption) in enumerate(zip(table["video"].to_pylist(), table["caption"].to_pylist(), strict=True)):
        try:
            if not caption:
                raise ClipError(video, "no caption")
            frames[row] = read_clip(video, data.frames, data.fps, data.height, data.width)
        except ClipError as error:
            reasons[row] = error.reason
    valid = np.array([reason is None for reason in reasons])
    return table.append_column("reason", pa.array(reasons, pa.string())).append_column(
        "frames", tensor_array(frames, valid)
    )


def write_shard(table: pa.Table, folder: str) -> pa.Table:
    """Write the good clips of `table` as one file and return what became of each: id, video, caption, reason."""
    good = table.filter(pc.is_null(table["reason"])).select(["id", "video", "caption", "mean", "logvar"])
    if len(good):
        # Each id is in one shard only, so that no two shards have the same lowest one, which names the file.
        name = f"{pc.min(good['id']).as_py():09d}.parquet"
        with replacing(join(folder, f"clips/{name}")) as (filesystem, temporary):
            pq.write_table(good, temporary, filesystem=filesystem, row_group_size=1, **FORMAT)
    return table.select(["id", "video", "caption", "reason"])


def select(block: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Some columns of a block. As a task it runs where the block is, so that tensors are not sent to the driver."""
    return block.select(columns)


def tensor_array(rows: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """Arrow array of tensors [n, ...]; rows where `valid` is False become null."""
    shape = rows.shape[1:]
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(rows.dtype), shape)
    mask = None if valid is None else pa.array(~valid)
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(values, type=kind.storage_type, mask=mask)
    )
