"""Prepared clips as training reads them, and the order in which it visits them.

They lie in Parquet files or in Ray's object store, and are read by their position in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from rayvideo.data.trimmed import KIND, embedding_of
from rayvideo.errors import UserError
from rayvideo.seeding import generator_for
from rayvideo.storage import locate

CACHE_BYTES = 256 * 2**20  # of rows that a process keeps once it has read them


class DataError(UserError):
    """Clips that can't be used for a run; the message says which and what to do."""


class Rejected(NamedTuple):
    """A clip that was dropped, and why."""

    video: str
    caption: str
    reason: str


class Place(NamedTuple):
    """Where one row lies: row group `row` of a Parquet file, or row `row` of a block in Ray's object store."""

    block: str | ray.ObjectRef
    row: int


@dataclass(frozen=True)
class Batch:
    """Clips as a trainer takes them; all lists and leading dimensions have length B."""

    ids: list[int]
    """Positions in the manifest."""
    videos: list[str]
    captions: list[str]
    mean: Tensor
    """Posterior mean [B, C, F, h, w] in the VAE's own units, fp32."""
    logvar: Tensor
    """Posterior log-variance [B, C, F, h, w], fp32."""
    embeddings: Tensor
    """Prompt embeddings [B, L, C], fp32."""

    def repeated(self, times: int) -> Batch:
        """The same clips `times` over."""
        return Batch(
            self.ids * times,
            self.videos * times,
            self.captions * times,
            *(rows.repeat(times, *[1] * (rows.ndim - 1)) for rows in (self.mean, self.logvar, self.embeddings)),
        )


class LatentTable:
    """Random access to prepared clips, in the order of their ids. Picklable; holds at most ~256 MB of rows per process.

    `rejected` lists the clips that preparation dropped.
    """

    def __init__(self, clips: Sequence[Place], captions: Mapping[str, Place], rejected: Sequence[Rejected]) -> None:
        self.rejected = tuple(rejected)
        self._clips = _Rows(clips)
        self._embeddings = _Rows(list(captions.values()))
        self._caption_rows = {caption: row for row, caption in enumerate(captions)}

    def __len__(self) -> int:
        return len(self._clips)

    def rows(self, indices: Sequence[int]) -> Batch:
        """The clips at these positions, 0 <= index < len(table)."""
        rows = [self._clips.read(index) for index in indices]
        return Batch(
            ids=[row["id"] for row in rows],
            videos=[row["video"] for row in rows],
            captions=[row["caption"] for row in rows],
            mean=torch.stack([row["mean"] for row in rows]),
            logvar=torch.stack([row["logvar"] for row in rows]),
            embeddings=torch.stack([self._embedding(row["caption"]) for row in rows]),
        )

    def unconditional(self, negative_prompt: str = "") -> Tensor:
        """Embedding [1, L, C] of the prompt that guidance leads away from: the one that clips were prepared for."""
        return self._embedding(negative_prompt)[None]

    def _embedding(self, caption: str) -> Tensor:
        return self._embeddings.read(self._caption_rows[caption])["embedding"]


class _Rows:
    """Reads rows by position, and keeps those that were read last."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._open = lru_cache(maxsize=64)(_open)
        row_bytes = sum(value.nbytes for value in self._load(0).values() if isinstance(value, Tensor))
        self.read = lru_cache(maxsize=max(1, CACHE_BYTES // row_bytes))(self._load)

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[type[_Rows], tuple[Sequence[Place]]]:
        return _Rows, (self._places,)  # caches and open files don't travel to other processes

    def _load(self, index: int) -> dict[str, Any]:
        place = self._places[index]
        if isinstance(place.block, str):
            try:
                row = self._open(place.block).read_row_group(place.row)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{place.block} is damaged or gone ({error}); prepare into a new folder") from error
        else:
            row = ray.get(place.block).slice(place.row, 1)
        return {name: _value(row[name]) for name in row.column_names}


def _open(path: str) -> pq.ParquetFile:
    filesystem, inner = locate(path)
    return pq.ParquetFile(inner, filesystem=filesystem)


def _value(column: pa.ChunkedArray) -> Any:
    if isinstance(column.type, pa.FixedShapeTensorType):
        # A copy: a view would be read-only, and keep the whole block alive in the object store.
        return torch.from_numpy(np.array(column.combine_chunks().to_numpy_ndarray()[0]))
    if column.type == KIND:
        return torch.from_numpy(embedding_of(column[0]))
    return column[0].as_py()


@lru_cache(maxsize=2)
def epoch_order(num_clips: int, seed: int, epoch: int) -> Tensor:
    """The order [num_clips] in which an epoch visits its clips."""
    return torch.randperm(num_clips, generator=generator_for(seed, "epoch", epoch))


def batch_indices(num_clips: int, seed: int, step: int, global_batch: int) -> list[int]:
    """Positions of the clips that make up global step `step`, counted from 0.

    A pure function, so that a run resumes at the same clip and its numbers do not depend on the number of workers: rank
    r takes its slice of the list. Each epoch visits every clip once; a batch may span two epochs.
    """
    visits = range(step * global_batch, (step + 1) * global_batch)
    return [int(epoch_order(num_clips, seed, visit // num_clips)[visit % num_clips]) for visit in visits]
