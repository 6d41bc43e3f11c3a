"""Clips of a list of captions, over Ray actors, into a folder of video files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
import torch

from rayvideo.data.manifest import BadRow, scan_captions
from rayvideo.data.storage import join, write_bytes
from rayvideo.data.video import write_clip
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.clipfolder import ADAPTER_FILES, Index, Row, clip_file, digest, settings
from rayvideo.evaluation.folder import is_file
from rayvideo.evaluation.generate import generate_clips, to_pixels
from rayvideo.evaluation.workers import Actors, batched, load_generator
from rayvideo.models import VideoModel, load_model
from rayvideo.progress import progress
from rayvideo.recipe import Recipe
from rayvideo.tracking import versions


@dataclass(frozen=True)
class Order:
    """What a call of the job is asked for."""

    recipe: Recipe
    adapter: str | None
    merge: bool
    rows: tuple[Row, ...]
    """One for every clip: distinct caption, seed, number of steps; "done" is what they shall become."""
    rejected: tuple[Row, ...]
    captions: int
    repeated: int
    """Entries of the list whose caption stood there before."""


def order(recipe: Recipe, captions: str, adapter: str | None, *, merge: bool = False) -> Order:
    """Read the list and refuse what would fail later, before anything is started.

    Args:
        captions: A list in any form that `read_captions` takes; entries that can't be used are set aside.
        adapter: Folder or URI of a trained adapter; None makes clips of the model as it is.
        merge: Add the adapter to the denoiser's weights, which saves its extra products in each layer.

    Raises:
        ManifestError, ModelError, EvaluationError: naming the thing and what is allowed.
    """
    if merge and adapter is None:
        raise EvaluationError("--merge needs an adapter to merge; give --adapter DIR")
    for name in ADAPTER_FILES if adapter else ():
        if not is_file(join(str(adapter), name)):
            raise EvaluationError(f"{adapter} holds no {name}; train an adapter or name its folder")
    listed, bad = scan_captions(captions)
    data, options = recipe.data, recipe.evaluation
    load_model(recipe.model.path, parts=("vae", "text")).latent_shape(data.frames, data.height, data.width)
    made_with = digest(json.dumps(settings(recipe, adapter, merge=merge)).encode())

    def reject(row: BadRow) -> Row:
        return Row(None, None, row.text, None, None, adapter, made_with, "rejected", row.reason)

    names: dict[str, str] = {}
    for entry in listed:
        names.setdefault(entry.caption, entry.name)
    rows = tuple(
        Row(clip_file(caption, seed, steps, made_with), name, caption, seed, steps, adapter, made_with, "done")
        for steps in options.steps
        for caption, name in names.items()
        for seed in dict.fromkeys(options.seeds)
    )
    return Order(recipe, adapter, merge, rows, tuple(map(reject, bad)), len(names), len(listed) - len(names))


def produce(wanted: Order, out: str) -> dict[str, Any]:
    """Make the clips that folder `out` lacks, and return its summary; needs a running Ray.

    Raises:
        EvaluationError: an actor died again and again.
    """
    started = time.monotonic()
    index = Index(out)
    missing = [row for row in wanted.rows if row.file not in index]
    index.add(wanted.rejected)
    failed: list[Row] = []
    try:
        if missing:
            with Writers(wanted, out) as writers, progress("generating", len(missing)) as bar:
                for rows in writers.write(missing):
                    index.add(rows)
                    failed += [row for row in rows if row.status == "failed"]
                    bar.update(len(rows))
    finally:
        index.write()
    summary = {
        "finished": True,
        "clips": len(wanted.rows) - len(failed),
        "new_clips": len(missing) - len(failed),
        "failed": len(failed),
        "captions": wanted.captions,
        "rejected": len(wanted.rejected),
        "repeated": wanted.repeated,
        "index": join(out, "index.jsonl"),
        "adapter": wanted.adapter,
        "merged": wanted.merge,
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
        "recipe": wanted.recipe.model_dump(mode="json"),
    }
    write_bytes(join(out, "summary.json"), json.dumps(summary, indent=2).encode())
    return summary


class ClipWriter:
    """Holds the model, with the adapter on it or in it, and writes clips."""

    def __init__(self, recipe: Recipe, adapter: str | None, merge: bool, out: str) -> None:
        self._recipe = recipe
        self._adapter = adapter
        self._merge = merge
        self._out = out

    def write(self, rows: Sequence[Row]) -> list[Row]:
        """Make and write the clips of these rows, all of one number of steps, and say what became of each."""
        options, data = self._recipe.evaluation, self._recipe.data
        clips = generate_clips(
            self._model,
            [row.caption for row in rows],
            [row.seed or 0 for row in rows],
            steps=rows[0].steps or 0,
            guidance=options.guidance,
            frames=data.frames,
            height=data.height,
            width=data.width,
            batch_size=options.batch_size,
            fixed_batch=True,
        )
        written = []
        for row, clip in zip(rows, clips, strict=True):
            if torch.isfinite(clip).all():
                write_clip(join(self._out, str(row.file)), to_pixels(clip), fps=data.fps)
                written.append(row)
            else:
                written.append(row._replace(status="failed", reason="the model gave numbers that are not finite"))
        return written

    @cached_property
    def _model(self) -> VideoModel:
        model = load_generator(self._recipe, self._adapter)
        if self._merge:
            model.denoiser = model.denoiser.merge_and_unload()
        return model


# Restarted and called again when its process dies: the same rows give the same files. Not a decorator, see ClipActor.
ClipWriterActor = ray.remote(max_restarts=-1, max_task_retries=2)(ClipWriter)


class Writers(Actors):
    """The actors of one call."""

    def __init__(self, wanted: Order, out: str) -> None:
        super().__init__(ClipWriterActor, wanted.recipe, wanted.adapter, wanted.merge, out)
        self._batch_size = wanted.recipe.evaluation.batch_size
        self._steps = wanted.recipe.evaluation.steps

    def write(self, rows: Sequence[Row]) -> Any:
        """What became of the rows, batch by batch as they are done."""
        batches = [
            batch
            for steps in self._steps
            for batch in batched([row for row in rows if row.steps == steps], self._batch_size)
        ]
        return self.spread(lambda actor, batch: actor.write.remote(batch), batches, ordered=False)
