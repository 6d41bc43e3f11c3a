"""Ray actors that make clips and write them as video files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import ray
import torch

from rayvideo.data.video import write_clip
from rayvideo.evaluation.clipfolder import Row
from rayvideo.evaluation.generate import generate_clips, to_pixels
from rayvideo.evaluation.workers import Actors, batched, load_generator
from rayvideo.models import VideoModel
from rayvideo.models.lora import unwrap
from rayvideo.recipe import Recipe
from rayvideo.storage import join


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
            negative_prompt=self._recipe.model.negative_prompt,
            frames=data.frames,
            height=data.height,
            width=data.width,
            batch_size=options.batch_size,
            tiled=self._recipe.model.tiled_decoding,
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
        return self.spread(lambda actor, batch: actor.write.remote(batch), batches, ordered=False)
