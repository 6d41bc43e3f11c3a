"""The folder that jobs/prepare.py fills: what it holds, and whether that fits a recipe.

clips/*.parquet     id int64, video, caption, mean and logvar as fp32 tensors [C, F, h, w]; one row per row group
captions.parquet    caption, embedding; every distinct caption, and the negative prompt. An embedding is its `shape`
                    [L, C] and its `values` without the rows of zeros at its end; in older folders a tensor [L, C]
rejected.jsonl      video, caption, reason
summary.json        what was done, with the fingerprint of what it was done with
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from rayvideo import sections
from rayvideo.data.manifest import Entry, read_captioned
from rayvideo.data.table import DataError, LatentTable, Place, Rejected
from rayvideo.recipe import Recipe
from rayvideo.storage import StorageError, join, locate, read_bytes, read_object, write_bytes, write_lines

ENCODING_PARTS = ("vae", "text_encoder", "tokenizer")
UNSET = {"negative_prompt": ""}
"""What a fingerprint that does not have these keys was made with: those of older folders stay as they are."""
ANEW = "prepare into a new folder"  # the mend of most of its errors


def open_prepared(recipe: Recipe) -> LatentTable:
    """The clips of `recipe.data.prepared`.

    Raises:
        DataError: The folder is missing, unfinished, empty, damaged, or was made with another model, size or rate.
    """
    folder = str(recipe.data.prepared)
    summary = read_summary(folder)
    if summary is None:
        raise DataError(f"data.prepared {folder!r} is no folder that jobs/prepare.py wrote")
    if not summary.get("finished"):
        raise DataError(f"data.prepared {folder!r} is not finished; run jobs/prepare.py again: it goes on from there")
    expected = fingerprint(recipe)
    _compare(folder, summary, expected)
    places = clip_places(folder)
    if not places:
        raise DataError(f"data.prepared {folder!r} holds no clips")
    captions = join(folder, "captions.parquet")
    filesystem, inner = locate(captions)
    try:
        names = pq.read_table(inner, filesystem=filesystem, columns=["caption"])["caption"].to_pylist()
        rejected = [Rejected(**json.loads(line)) for line in read_bytes(join(folder, "rejected.jsonl")).splitlines()]
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"data.prepared {folder!r} is damaged ({error}); {ANEW}") from error
    if absent := {recipe.model.negative_prompt, *(place.caption for place in places.values())} - set(names):
        raise DataError(f"{captions} lacks {len(absent)} captions of its clips, such as {min(absent)!r}; {ANEW}")
    return LatentTable(
        [places[clip].place for clip in sorted(places)],
        {caption: Place(captions, row) for row, caption in enumerate(names)},
        rejected,
    )


def claim(folder: str, expected: dict[str, Any]) -> None:
    """Mark an empty folder as one of jobs/prepare.py, or make sure that it was begun with the same fingerprint.

    Raises:
        DataError: it was begun with another one, or holds something else.
    """
    filesystem, inner = locate(folder)
    summary = read_summary(folder)
    if summary is not None:
        _compare(folder, summary, expected)
    elif filesystem.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True)):
        raise DataError(f"{folder!r} is not empty and not of jobs/prepare.py; choose another folder")
    write_summary(folder, {"finished": False, "fingerprint": expected})


def fingerprint(recipe: Recipe, entries: Sequence[Entry] | None = None) -> dict[str, Any]:
    """Everything that the numbers in a prepared folder depend on; without `entries`, all but the list of clips."""
    data = recipe.data
    numbers = {"frames": data.frames, "fps": data.fps, "height": data.height, "width": data.width}
    listed = {} if entries is None else {"manifest": digest(entries)}
    prompt = {"negative_prompt": recipe.model.negative_prompt} if recipe.model.negative_prompt else {}
    return {"model": model_digest(recipe.model, ENCODING_PARTS), **numbers, **listed, **prompt}


def digest(entries: Sequence[Entry]) -> str:
    """Of a list of clips: which they are, in what order, and what they show; not their pixels."""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def list_digest(recipe: Recipe) -> str:
    """`digest` of the recipe's clips; of a prepared folder, of the list that it was prepared from."""
    data = recipe.data
    if data.prepared is not None:
        return str((read_summary(data.prepared) or {})["fingerprint"]["manifest"])
    return digest(read_captioned(str(data.manifest), data.root, data.max_bad_fraction))


class Prepared(NamedTuple):
    """A clip in the folder."""

    place: Place
    caption: str


def clip_places(folder: str) -> dict[int, Prepared]:
    """The clips that the folder holds, by id.

    Raises:
        DataError: a file of them is damaged or of something else.
    """
    clips = join(folder, "clips")
    filesystem, inner = locate(clips)
    filesystem.create_dir(inner, recursive=True)
    # A process that died while it wrote a file has left one whose name starts with "_", which datasets leave out.
    try:
        dataset = pa.dataset.dataset(inner, filesystem=filesystem, format="parquet")
        if not dataset.files:
            return {}
        rows = dataset.to_table(columns=["id", "caption", "__filename"]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{clips} holds a file that is damaged or of something else ({error}); {ANEW}") from error
    row_in_file: Counter[str] = Counter()
    places: dict[int, Prepared] = {}
    for row in rows:
        clip, file = row["id"], row["__filename"]
        if clip in places:
            raise DataError(f"{folder!r} holds clip {clip} twice; {ANEW}")
        places[clip] = Prepared(Place(join(clips, file.rpartition("/")[2]), row_in_file[file]), row["caption"])
        row_in_file[file] += 1
    return places


def write_rejected(path: str | Path, rejected: Sequence[Rejected]) -> None:
    """One JSON object a line: video, caption, reason."""
    write_lines(str(path), (clip._asdict() for clip in rejected))


def read_summary(folder: str) -> dict[str, Any] | None:
    """What summary.json says, None if there is none.

    Raises:
        DataError: it is damaged.
    """
    try:
        return read_object(join(folder, "summary.json"), ANEW)
    except FileNotFoundError:
        return None
    except StorageError as error:
        raise DataError(str(error)) from error


def write_summary(folder: str, summary: dict[str, Any]) -> None:
    write_bytes(join(folder, "summary.json"), json.dumps(summary, indent=2).encode())


def _compare(folder: str, summary: dict[str, Any], expected: dict[str, Any]) -> None:
    found = summary.get("fingerprint")
    if not isinstance(found, dict) or not expected.keys() <= (UNSET | found).keys():
        raise DataError(f"{folder!r}: its summary.json does not say what it was prepared with; {ANEW}")
    digests = {"manifest": "another list of clips", "model": "another VAE or text tower, or by another model.family"}
    found, expected = UNSET | found, UNSET | expected
    for key, value in expected.items():
        if found[key] != value:
            name = f"model.{key} {found[key]!r}" if key in UNSET else f"data.{key} {found[key]}"
            what = digests.get(key, f"{name}, not {value!r}")
            raise DataError(f"{folder!r} was prepared with {what}; prepare into another folder")


def model_digest(model: sections.Model, parts: Sequence[str]) -> str:
    """Digest of the folders of these parts of a model, or the id of one on the hub; and the family, if one is set."""
    content = _folders_digest(Path(model.path), parts) if Path(model.path).is_dir() else model.path
    return f"{model.family} {content}" if model.family else content


def _folders_digest(path: Path, parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted(Path(path, part).rglob("*")):
            if file.is_file():
                digest.update(str(file.relative_to(path)).encode())
                with file.open("rb") as content:
                    while chunk := content.read(2**20):
                        digest.update(chunk)
    return digest.hexdigest()
