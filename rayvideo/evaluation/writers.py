"""Ray actors that make clips and write them as video files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch

from rayvideo.data.trimmed import Trimmed
from rayvideo.data.video import write_clip
from rayvideo.evaluation.clipfolder import Row
from rayvideo.evaluation.generate import to_pixels
from rayvideo.evaluation.generator import Generator
from rayvideo.evaluation.workers import Actors, batched
from rayvideo.models import VideoModel
from rayvideo.models.lora import unwrap
from rayvideo.recipe import Recipe
from rayvideo.storage import join


class ClipWriter(Generator):
    """Makes clips, with the adapter on the denoiser or in it, and writes them."""

    def __init__(self, recipe: Recipe, adapter: str | None, merge: bool, out: str) -> None:
        super().__init__(recipe, adapter)
        self._merge = merge
        self._out = out

    def write(self, rows: Sequence[Row], *embeddings: Trimmed) -> list[Row]:
        """Make and write the clips of these rows, all of one number of steps, and say what became of each.

        Args:
            embeddings: Of the negative prompt and of the rows' captions.
        """
        captions, seeds = [row.caption for row in rows], [row.seed or 0 for row in rows]
        clips = self._clips(captions, seeds, rows[0].steps or 0, embeddings, fixed_batch=True)
        written = []
        for row, clip in zip(rows, clips, strict=True):
            if torch.isfinite(clip).all():
                write_clip(join(self._out, str(row.file)), to_pixels(clip), fps=self._recipe.data.fps)
                written.append(row)
            else:
                written.append(row._replace(status="failed", reason="the model gave numbers that are not finite"))
        return written

    def _load(self) -> VideoModel:
        model = super()._load()
        if self._merge:
            model.denoiser = unwrap(model.denoiser).merge_and_unload()
        return model


# Restarted and called again when its process dies: the same rows give the same files. Not a decorator, see ClipActor.
ClipWriterActor = ray.remote(max_restarts=-1, max_task_retries=2)(ClipWriter)


class Writers(Actors):
    """Actors that write clips into the folder `out`."""

    def __init__(self, recipe: Recipe, adapter: str | None, merge: bool, out: str) -> None:
        super().__init__(ClipWriterActor, recipe, adapter, merge, out)
        self._batch_size = recipe.evaluation.batch_size
        self._steps = recipe.evaluation.steps

    def write(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """What became of the rows, batch by batch as they are done."""
        batches = [
            batch
            for steps in self._steps
            for batch in batched([row for row in rows if row.steps == steps], self._batch_size)
        ]
        self.embed(row.caption for row in rows)

        def write(actor: Any, batch: Sequence[Row]) -> Any:
            return actor.write.remote(batch, *self.embeddings(row.caption for row in batch))

        return self.spread(write, batches, ordered=False)
