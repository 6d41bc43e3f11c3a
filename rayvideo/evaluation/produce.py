"""A list of captions to a folder of clips: what is to be made, what is there already, what became of the rest."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from rayvideo.data.manifest import BadRow, scan_captions
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.adapter import check_generator
from rayvideo.evaluation.clipfolder import Index, Row, clip_file, digest, settings
from rayvideo.evaluation.writers import Writers
from rayvideo.progress import progress
from rayvideo.recipe import Recipe, shareable
from rayvideo.storage import join, write_bytes
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


def check(recipe: Recipe, captions: str, adapter: str | None, *, merge: bool = False) -> None:
    """Refuse what `order` would, before anything is started.

    Raises:
        ManifestError, ModelError, EvaluationError: naming the thing and what is allowed.
    """
    if merge and adapter is None:
        raise EvaluationError("--merge needs an adapter to merge; give --adapter DIR")
    scan_captions(captions)
    check_generator(recipe, adapter)


def order(recipe: Recipe, captions: str, adapter: str | None, *, merge: bool = False) -> Order:
    """Everything that is to be made.

    Args:
        recipe: As `settle` left it: a clip's name knows its number format.
        captions: A list in any form that `read_captions` takes; entries that can't be used are set aside.
        adapter: Folder or URI of a trained adapter; None makes clips of the model as it is.
        merge: Add the adapter to the denoiser's weights, which saves its extra products in each layer.

    Raises:
        ManifestError, ModelError, EvaluationError: naming the thing and what is allowed.
    """
    check(recipe, captions, adapter, merge=merge)
    listed, bad = scan_captions(captions)
    options = recipe.evaluation
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
            with (
                Writers(wanted.recipe, wanted.adapter, wanted.merge, out) as writers,
                progress("generating", len(missing)) as bar,
            ):
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
        "recipe": shareable(wanted.recipe),
    }
    write_bytes(join(out, "summary.json"), json.dumps(summary, indent=2).encode())
    return summary
