"""Prompt embeddings as they are stored and sent: without the rows of zeros that fill them up.

A family that shows its denoiser rows of zeros behind the text, such as 512 of 4096 numbers, would store megabytes of
them for each caption. Where a text tower fills these rows with numbers nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float32]

KIND = pa.struct({"shape": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})
"""A `Trimmed` as a cell of an Arrow table."""


class Trimmed(NamedTuple):
    """An embedding [L, C] up to its last row that is not all zeros."""

    shape: tuple[int, int]
    """(L, C), with the rows that are left out."""
    values: Floats
    """The rows that are kept, flat."""

    @classmethod
    def of(cls, embedding: Floats) -> Trimmed:
        """Of an embedding [L, C]. What counts as zero is +0, so that `whole` gives the same bits."""
        rows = np.ascontiguousarray(embedding)
        used = int(np.flatnonzero(rows.view(np.uint32).any(axis=1)).max(initial=-1)) + 1
        return cls((rows.shape[0], rows.shape[1]), rows[:used].reshape(-1).copy())

    def whole(self) -> Floats:
        """The embedding [L, C], bit for bit."""
        rows = np.zeros(self.shape, np.float32)
        rows.reshape(-1)[: len(self.values)] = self.values
        return rows


def embedding_array(embeddings: Sequence[Floats] | Floats) -> pa.Array:
    """Arrow array of embeddings [n, L, C]."""
    return pa.array([Trimmed.of(embedding)._asdict() for embedding in embeddings], KIND)


def embedding_of(cell: Any) -> Floats:
    """The embedding [L, C] in a cell of such an array."""
    return Trimmed(tuple(cell["shape"].as_py()), cell["values"].values.to_numpy()).whole()
