"""The folder that jobs/generate.py fills: what its clips are called, and which are there.

clips/*.mp4     one clip for each caption, seed and number of steps
index.jsonl     one `Row` a line; a clip counts as made only if its line and its file are there
summary.json    what the last call did
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.fs

from rayvideo.data.prepared import model_digest
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.captions import slug
from rayvideo.recipe import Recipe
from rayvideo.storage import is_file, join, locate, read_bytes, write_lines

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
GENERATING_PARTS = ("unet", "transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")
"""Folders of a pipeline that its clips depend on; none has all of them."""
PATIENCE = 20  # the index is written at most 1/20 of the time


class Row(NamedTuple):
    """A line of the index."""

    file: str | None
    """Path below the folder; none of what was rejected."""
    name: str | None
    """What the list calls the clip."""
    caption: str
    """Of what was rejected, the text of its entry."""
    seed: int | None
    steps: int | None
    adapter: str | None
    settings: str
    """Digest of all else that the clip depends on."""
    status: Literal["done", "failed", "rejected"]
    reason: str | None = None


def settings(recipe: Recipe, adapter: str | None, *, merge: bool) -> dict[str, Any]:
    """Everything that a clip depends on, besides caption, seed and steps."""
    data, model = recipe.data, recipe.model
    changed = {
        "shift": model.shift,
        "negative_prompt": model.negative_prompt or None,
        "tiled_decoding": model.tiled_decoding or None,
    }
    return {
        "model": model_digest(model, GENERATING_PARTS),
        "adapter": [digest(read_bytes(join(adapter, name))) for name in ADAPTER_FILES] if adapter else None,
        "merged": merge,
        "precision": recipe.training.precision,
        "guidance": recipe.evaluation.guidance,
        **{key: getattr(data, key) for key in ("frames", "fps", "height", "width")},
        # Left out where they are not set, so that clips from before they could be keep their names.
        **{key: value for key, value in changed.items() if value is not None},
    }


def clip_file(caption: str, seed: int, steps: int, settings: str) -> str:
    """Path below the folder, safe for every caption: its plain letters, then a digest of what the clip is made from."""
    unique = digest(json.dumps([caption, seed, steps, settings]).encode())
    return f"clips/{'-'.join(filter(None, [slug(caption), f's{seed}', f'd{steps}', unique]))}.mp4"


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _row(path: str, number: int, line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line)) if line.strip() else None
        hash(row)
        return row
    except (ValueError, TypeError, RecursionError) as error:
        raise EvaluationError(
            f"{path} line {number} is no entry of an index ({error}); remove the line, and its clip is made again"
        ) from error


class Index:
    """The lines of index.jsonl, by file; those whose file is gone are forgotten.

    Raises:
        EvaluationError: naming a line that is damaged.
    """

    def __init__(self, folder: str) -> None:
        self._path = join(folder, "index.jsonl")
        self._done: dict[str | None, Row] = {}
        self._bad: list[Row] = []
        self._cost, self._written = 0.0, time.monotonic()
        if is_file(self._path):
            filesystem, inner = locate(join(folder, "clips"))
            there = {
                f"clips/{file.base_name}"
                for file in filesystem.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True))
                if file.is_file and file.size
            }
            rows = (_row(self._path, *numbered) for numbered in enumerate(read_bytes(self._path).split(b"\n"), 1))
            self._done = {row.file: row for row in rows if row and row.status == "done" and row.file in there}

    def __contains__(self, file: str | None) -> bool:
        """Whether the clip is made."""
        return file in self._done

    def add(self, rows: Iterable[Row]) -> None:
        """Take note of clips, and write the index unless it was written just now."""
        for row in rows:
            if row.status == "done" and row.file:
                self._done[row.file] = row
            else:
                self._bad.append(row)
        if time.monotonic() - self._written > PATIENCE * self._cost:
            self.write()

    def write(self) -> None:
        """Write the whole file, atomically; works in a bucket, where nothing can be appended."""
        started = time.monotonic()
        write_lines(self._path, (row._asdict() for row in (*self._done.values(), *self._bad)))
        self._written = time.monotonic()
        self._cost = self._written - started
