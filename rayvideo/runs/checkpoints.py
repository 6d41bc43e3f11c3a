"""Checkpoints in a run's storage: how one is written, checked in full when it is read, found and deleted.

One that was not written to its end is never taken for a checkpoint.

checkpoints/step-000040/
  index-00000.json   one of each worker, which it writes last: its files with sizes and digests, and their `Part`
  state.json         step, workers, global batch, best so far, the stop rule and its verdict, MLflow run, recipe
  rng-00000.pt       one of each worker: its random number generators
  ds/                DeepSpeed's shards of optimizer and adapter
  adapter/           the adapter in PEFT's format
checkpoints/refused/ checkpoints that were damaged or of another run, as they were found
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.fs

from rayvideo.errors import UserError
from rayvideo.storage import join, locate, read_bytes, write_bytes

CHECKPOINTS = "checkpoints"
REFUSED = f"{CHECKPOINTS}/refused"
STATE = "state.json"
SNAPSHOT = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints it knows
CHUNK = 2**22  # bytes that are read at once


class CheckpointError(UserError):
    """A checkpoint that must not be used: the message names it, what is wrong with it and what to do."""


class UnfinishedError(CheckpointError):
    """A checkpoint that not all workers finished writing."""


class Part(NamedTuple):
    """What one worker's files of a checkpoint are a part of; all parts of a checkpoint must agree."""

    run: str
    """Id of the MLflow run."""
    attempt: str
    """Another one each time that workers start, so that what two attempts wrote is never taken for one checkpoint."""
    step: int
    rank: int
    workers: int


class Good(NamedTuple):
    """A checkpoint that was read and found whole."""

    folder: str
    """Path or URI."""
    state: dict[str, Any]
    """What its state.json holds."""

    @property
    def step(self) -> int:
        """Optimizer steps that it holds."""
        return int(self.state["step"])


class Refused(NamedTuple):
    """A checkpoint that is not used, and why."""

    name: str
    why: str
    unfinished: bool


def name_of(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def steps_in(run_folder: str) -> list[int]:
    """Steps whose checkpoints lie in a run's folder, good or not, ascending."""
    filesystem, inner = locate(join(run_folder, CHECKPOINTS))
    entries = filesystem.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True))
    found = (re.fullmatch(r"step-(\d{6,})", entry.base_name) for entry in entries)
    return sorted(int(match[1]) for match in found if match)


def upload(source: Path, target: str, part: Part) -> None:
    """Copy a worker's files to `target`, a path or URI; the index comes last, and without it they don't count."""
    filesystem, inner = locate(target)
    files = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source).as_posix()
        with file.open("rb") as content:
            files[name] = {"bytes": file.stat().st_size, "blake2b": _digest(content)}
        filesystem.create_dir(f"{inner}/{name}".rpartition("/")[0], recursive=True)
        # Threads and uploads to S3 don't go together: https://github.com/apache/arrow/issues/32372
        pa.fs.copy_files(str(file), f"{inner}/{name}", destination_filesystem=filesystem, use_threads=False)
    index = json.dumps({**part._asdict(), "files": files}, indent=1)
    write_bytes(join(target, f"index-{part.rank:05d}.json"), index.encode())


def verify(folder: str, run: str) -> Good:
    """Read all of a checkpoint and compare it with its indices.

    Args:
        folder: Path or URI.
        run: Id of the MLflow run that it must be of.

    Raises:
        UnfinishedError: parts of workers are missing.
        CheckpointError: it is damaged, or of another run.
    """
    filesystem, inner = locate(folder)
    name = inner.rpartition("/")[2]
    entries = filesystem.get_file_info(pa.fs.FileSelector(inner, recursive=True, allow_not_found=True))
    sizes = {entry.path[len(inner) + 1 :]: entry.size for entry in entries if entry.is_file}
    indices = [_read_index(folder, name, file) for file in sorted(sizes) if re.fullmatch(r"index-\d+\.json", file)]
    if not indices:
        raise UnfinishedError(f"{name}: no worker finished writing it")
    parts = [part for part, _ in indices]
    _check_parts(name, parts, run)
    for _, files in indices:
        for file, expected in files.items():
            if file not in sizes:
                raise CheckpointError(f"{name}: {file} is missing")
            if sizes[file] != expected["bytes"]:
                raise CheckpointError(f"{name}: {file} has {sizes[file]} bytes, not {expected['bytes']}")
            with filesystem.open_input_stream(f"{inner}/{file}") as content:
                if _digest(content) != expected["blake2b"]:
                    raise CheckpointError(f"{name}: {file} is not what was written: other bytes of the same number")
    if STATE not in indices[0][1]:
        raise CheckpointError(f"{name}: {STATE} is missing")
    return Good(folder, json.loads(read_bytes(join(folder, STATE))))


def newest_good(run_folder: str, run: str) -> tuple[Good | None, list[Refused]]:
    """The newest checkpoint that is whole and of MLflow run `run`, and those newer than it, which are not.

    Returns:
        None in the checkpoint's place if the run has none yet.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged or of another run.
    """
    refused: list[Refused] = []
    for step in reversed(steps_in(run_folder)):
        try:
            return verify(join(run_folder, f"{CHECKPOINTS}/{name_of(step)}"), run), refused
        except CheckpointError as error:
            refused.append(Refused(name_of(step), str(error), isinstance(error, UnfinishedError)))
    if all(one.unfinished for one in refused):
        return None, refused
    raise CheckpointError(
        f"no checkpoint in {join(run_folder, CHECKPOINTS)!r} can be used: {'; '.join(one.why for one in refused)}. "
        "Put a good copy of one of them in its place, or start anew with another tracking.run_name"
    )


def put_away(run_folder: str, refused: list[Refused]) -> None:
    """Free the names of refused checkpoints: unfinished ones are deleted, others kept under checkpoints/refused/."""
    for one in refused:
        filesystem, inner = locate(join(run_folder, f"{CHECKPOINTS}/{one.name}"))
        if not one.unfinished:
            _, kept = locate(join(run_folder, f"{REFUSED}/{one.name}"))
            # Indices are moved first. Should this be interrupted, the rest of the checkpoint counts as unfinished.
            for file in sorted(_files(filesystem, inner), key=lambda path: (not _is_index(path), path)):
                target = kept + file[len(inner) :]
                filesystem.create_dir(target.rpartition("/")[0], recursive=True)
                filesystem.move(file, target)
        _delete(filesystem, inner)


def prune(run_folder: str, newest: int, keep: int, spared: Collection[int | None] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and those of the steps in `spared`.

    Args:
        newest: Step of the newest whole checkpoint. Newer ones are still being written: they don't count, and stay.
    """
    for step in [step for step in steps_in(run_folder) if step <= newest][:-keep]:
        if step not in spared:
            _delete(*locate(join(run_folder, f"{CHECKPOINTS}/{name_of(step)}")))


def forget_reports(run_folder: str) -> None:
    """Delete the list of checkpoints that Ray Train has left in the run folder, before Ray Train reads it again.

    Ray Train does not start if the list was cut off by a kill, or if a checkpoint in it is gone. We find checkpoints
    without it.
    """
    filesystem, inner = locate(join(run_folder, SNAPSHOT))
    if filesystem.get_file_info(inner).is_file:
        filesystem.delete_file(inner)


def _read_index(folder: str, name: str, file: str) -> tuple[Part, dict[str, dict[str, Any]]]:
    try:
        index = json.loads(read_bytes(join(folder, file)))
        return Part(**{field: index[field] for field in Part._fields}), index["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: {file} can't be read: {error!r}") from error


def _check_parts(name: str, parts: list[Part], run: str) -> None:
    for part in parts:
        if part.run != run:
            raise CheckpointError(f"{name}: it belongs to MLflow run {part.run}, not to {run}")
        if name != name_of(part.step):
            raise CheckpointError(f"{name}: it holds step {part.step}")
    if len({(part.attempt, part.workers) for part in parts}) > 1:
        raise CheckpointError(f"{name}: its parts were written by different attempts")
    if len(parts) != parts[0].workers:
        ranks = [part.rank for part in parts]
        raise UnfinishedError(f"{name}: parts of {parts[0].workers} workers belong to it; there are those of {ranks}")


def _digest(content: BinaryIO | pa.NativeFile) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while chunk := content.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _files(filesystem: pa.fs.FileSystem, folder: str) -> list[str]:
    entries = filesystem.get_file_info(pa.fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return [entry.path for entry in entries if entry.is_file]


def _is_index(path: str) -> bool:
    return path.rpartition("/")[2].startswith("index-")


def _delete(filesystem: pa.fs.FileSystem, folder: str) -> None:
    for file in filter(_is_index, _files(filesystem, folder)):
        filesystem.delete_file(file)
    filesystem.delete_dir(folder)
