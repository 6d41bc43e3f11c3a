"""Clips become VAE posteriors, and captions become embeddings, once and ahead of training.

Ray Data streams them: tasks decode, actors encode, and the results are kept. `prepare_to` keeps them in a folder
(`rayvideo.data.prepared`), `stream` in Ray's object store; the numbers are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util.debug import log_once

from rayvideo.data import prepared, tasks
from rayvideo.data.encoders import CaptionEncoder, ClipEncoder
from rayvideo.data.manifest import Entry, read_captioned
from rayvideo.data.table import DataError, LatentTable, Place, Rejected
from rayvideo.errors import RecipeError
from rayvideo.models import load_model
from rayvideo.progress import progress
from rayvideo.recipe import Recipe
from rayvideo.storage import join, locate, replacing

CLIPS_PER_SHARD = 32
CAPTIONS_PER_CALL = 32
REASONS_SHOWN = 3
OUTCOME = ("id", "video", "caption", "reason")  # columns that say what became of a clip


def open_latents(recipe: Recipe, meanwhile: Callable[[], None] = lambda: None) -> LatentTable:
    """The recipe's clips: from `data.prepared`, or encoded now from `data.manifest`.

    Between blocks of clips `meanwhile` is called; what it raises ends the encoding.
    """
    return prepared.open_prepared(recipe) if recipe.data.prepared else stream(recipe, meanwhile)


def check(recipe: Recipe) -> None:
    """Refuse what can be refused before Ray starts: a bad list of clips, a missing or damaged model, a wrong size.

    Raises:
        RecipeError, ManifestError, ModelError: naming the thing and what is allowed.
    """
    _entries(recipe)
    load_model(recipe.model.path, family=recipe.model.family, device="meta", parts=("text",))
    _latent_shape(recipe)


def prepare_to(recipe: Recipe, out: str) -> dict[str, Any]:
    """Encode the recipe's clips and captions into folder `out` and return its summary.

    Clips that a former, interrupted call left there are not encoded again. Bad clips are dropped and listed in
    `rejected.jsonl`.

    Returns:
        finished, clips (in the folder), new_clips (by this call), rejected, captions (embedded, with the negative
        prompt), seconds, fingerprint.

    Raises:
        DataError: `out` belongs to something else, or more than `data.max_bad_fraction` of the clips are bad.
        RecipeError, ManifestError, ModelError: as `check` does, before anything starts.
    """
    started = time.monotonic()
    entries = _entries(recipe)
    shape = _latent_shape(recipe)
    fingerprint = prepared.fingerprint(recipe, entries)
    prepared.claim(out, fingerprint)
    present = prepared.clip_places(out)
    missing = [number for number in range(len(entries)) if number not in present]
    rejected: list[Rejected] = []
    try:
        if missing:
            shards = _encoded_clips(recipe, entries, missing, shape).map_batches(
                tasks.write_shard,
                fn_args=(out,),
                batch_size=CLIPS_PER_SHARD,
                batch_format="pyarrow",
                num_cpus=0.5,
                resources=recipe.data.decode_resources,
            )
            outcomes = (block for _, block in _blocks(shards, *OUTCOME))
            _tally(recipe, outcomes, len(entries), len(present), rejected)
    finally:
        prepared.write_rejected(join(out, "rejected.jsonl"), rejected)

    captions = _write_captions(recipe, entries, out)
    clips = len(prepared.clip_places(out))
    if clips + len(rejected) != len(entries):
        raise DataError(f"{out!r} holds only {clips} of {len(entries)} clips; does every node of the cluster see it?")
    summary = {
        "finished": True,
        "clips": clips,
        "new_clips": clips - len(present),
        "rejected": len(rejected),
        "captions": captions,
        "seconds": round(time.monotonic() - started, 1),
        "fingerprint": fingerprint,
    }
    prepared.write_summary(out, summary)
    return summary


def stream(recipe: Recipe, meanwhile: Callable[[], None] = lambda: None) -> LatentTable:
    """Encode the recipe's clips and captions into Ray's object store, which spills to disk when it is full.

    The table lives as long as the process that called this. Errors are those of `prepare_to`, and of `meanwhile`,
    which is called after each block.
    """
    entries = _entries(recipe)
    shape = _latent_shape(recipe)
    clips: dict[int, Place] = {}

    def outcomes() -> Generator[pa.Table]:
        encoded = _encoded_clips(recipe, entries, range(len(entries)), shape)
        for ref, block in _blocks(encoded, *OUTCOME):
            good = zip(block["id"].to_pylist(), block["reason"].to_pylist(), strict=True)
            clips.update({clip: Place(ref, row) for row, (clip, reason) in enumerate(good) if reason is None})
            yield block

    rejected: list[Rejected] = []
    _tally(recipe, outcomes(), len(entries), 0, rejected, meanwhile)
    captions: dict[str, Place] = {}
    with (
        progress("embedding captions", len(_captions(recipe, entries)), unit="caption") as bar,
        closing(_blocks(_embedded_captions(recipe, entries), "caption")) as blocks,
    ):
        for ref, block in blocks:
            captions |= {caption: Place(ref, row) for row, caption in enumerate(block["caption"].to_pylist())}
            bar.update(len(block))
            meanwhile()
    return LatentTable([clips[clip] for clip in sorted(clips)], captions, rejected)


def _entries(recipe: Recipe) -> list[Entry]:
    if recipe.data.manifest is None:
        raise RecipeError("data.manifest: required, but not set; clips are prepared from it")
    return read_captioned(recipe.data.manifest, recipe.data.root, recipe.data.max_bad_fraction)


def _latent_shape(recipe: Recipe) -> tuple[int, ...]:
    data = recipe.data
    vae = load_model(recipe.model.path, family=recipe.model.family, device="meta", parts=("vae",))
    return vae.latent_shape(data.frames, data.height, data.width)


def _encoded_clips(recipe: Recipe, entries: Sequence[Entry], chosen: Sequence[int], shape: tuple[int, ...]) -> Dataset:
    """Rows id, video, caption, reason, mean, logvar; a bad clip has a reason and null for the tensors."""
    rows = {
        "id": pa.array(chosen, pa.int64()),
        "video": pa.array([entries[number]["video"] for number in chosen], pa.string()),
        "caption": pa.array([entries[number]["caption"] for number in chosen], pa.string()),
    }
    data = recipe.data
    decoded = _dataset(pa.table(rows), data.batch_size).map_batches(
        tasks.decode,
        fn_args=(data,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=data.decode_cpus,
        # So that decoding can't run a machine out of memory, and so that Ray Data does not fuse decoding into the
        # encoders, which it does where resources are equal.
        memory=tasks.decoding_bytes(data),
        resources=data.decode_resources,
    )
    return _encode(decoded, ClipEncoder, recipe, shape)


def _embedded_captions(recipe: Recipe, entries: Sequence[Entry]) -> Dataset:
    """Rows caption, embedding."""
    table = pa.table({"caption": pa.array(_captions(recipe, entries), pa.string())})
    return _encode(_dataset(table, CAPTIONS_PER_CALL), CaptionEncoder, recipe)


def _captions(recipe: Recipe, entries: Sequence[Entry]) -> list[str]:
    """The negative prompt, and every distinct caption once."""
    return list(dict.fromkeys([recipe.model.negative_prompt, *(entry["caption"] for entry in entries)]))


def _dataset(table: pa.Table, rows_per_block: int) -> Dataset:
    """The table in blocks that are cut ahead: which clips are encoded together must not depend on who comes first.

    Results depend on that in their last bits.
    """
    starts = range(0, len(table), rows_per_block)
    dataset = ray.data.from_arrow([table.slice(start, rows_per_block) for start in starts])
    dataset.context.enable_progress_bars = False  # ours counts clips, Ray's the blocks of each operator
    log_once("ray_data_progress_manager_disabled")  # Ray warns once that its bars are off: not now
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it tells its plan and resources at every execution
    return dataset


def _encode(dataset: Dataset, encoder: type, recipe: Recipe, *arguments: Any) -> Dataset:
    data = recipe.data
    return dataset.map_batches(
        encoder,
        fn_constructor_args=(recipe.model, "cuda" if data.encoder_gpus else "cpu", *arguments),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=data.encoders),
        num_cpus=data.encoder_cpus,
        num_gpus=data.encoder_gpus,
        resources=data.encoder_resources,
    )


def _write_captions(recipe: Recipe, entries: Sequence[Entry], out: str) -> int:
    """Write captions.parquet unless it is there, and return how many captions it holds."""
    path = join(out, "captions.parquet")
    filesystem, inner = locate(path)
    total = len(_captions(recipe, entries))
    if filesystem.get_file_info(inner).type == pa.fs.FileType.File:
        return total
    blocks = (block for _, block in _blocks(_embedded_captions(recipe, entries), "caption", "embedding"))
    first = next(blocks)  # it has the schema; there is one, since the negative prompt is embedded always
    with (
        replacing(path) as (filesystem, temporary),
        pq.ParquetWriter(temporary, first.schema, filesystem=filesystem, **tasks.FORMAT) as writer,
        progress("embedding captions", total, unit="caption") as bar,
    ):
        for block in chain([first], blocks):
            writer.write_table(block, row_group_size=1)
            bar.update(len(block))
    return total


def _blocks(dataset: Dataset, *columns: str) -> Generator[tuple[ray.ObjectRef, pa.Table]]:
    """Run `dataset` and yield its blocks as they come: a reference to each, and these columns of it.

    Closing the generator ends the run.
    """
    select = ray.remote(num_cpus=0)(tasks.select)
    for bundle in dataset.iter_internal_ref_bundles():
        for ref in bundle.block_refs:
            yield ref, ray.get(select.remote(ref, columns))


def _tally(
    recipe: Recipe,
    outcomes: Generator[pa.Table],
    total: int,
    done: int,
    rejected: list[Rejected],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Count clips as they come, with a progress bar, and collect the `rejected`; stop as soon as they are too many."""
    limit = recipe.data.max_bad_fraction
    # Ray Data goes on until its iterator is closed or gone, and an exception's traceback would keep the iterator alive:
    # hence `closing`.
    with progress("encoding clips", total) as bar, closing(outcomes):
        bar.update(done)
        for table in outcomes:
            bad = table.filter(pc.is_valid(table["reason"])).select(Rejected._fields)
            rejected += [Rejected(**row) for row in bad.to_pylist()]
            bar.set_postfix(dropped=len(rejected), refresh=False)
            bar.update(len(table))
            meanwhile()
            if len(rejected) > limit * total or len(rejected) == total:
                first = "; ".join(f"{clip.video}: {clip.reason}" for clip in rejected[:REASONS_SHOWN])
                raise DataError(
                    f"{len(rejected)} of {total} clips are bad so far, and data.max_bad_fraction allows {limit:g} of "
                    f"them: {first}{'; ...' if len(rejected) > REASONS_SHOWN else ''}"
                )
