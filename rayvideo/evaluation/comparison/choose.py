"""Which runs are meant: folders, names under the storage, MLflow's run ids, or an MLflow query."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.workers import Variant
from rayvideo.storage import absolute, is_file, join, locate
from rayvideo.tracking import run_folders, uri_beside

logger = logging.getLogger(__name__)

CLIPS = "clips.parquet"  # what makes a folder one that can be compared
BASE = ":base"  # behind a run's name: its model without the adapter
RUN_ID = re.compile(r"[0-9a-f]{32}")
QUERY = re.compile(r"[=<>]|\b(?:I?LIKE|IN|IS)\b", re.IGNORECASE)
MOST = 6
"""Runs that one page can still tell apart by colours and dashes."""


class Side(NamedTuple):
    """One side of a comparison: a run's tuned model, or its base."""

    folder: str
    variant: Variant

    @property
    def word(self) -> str:
        """What finds it again on the command line."""
        return self.folder + BASE if self.variant == "base" else self.folder

    @property
    def name(self) -> str:
        return re.split(r"[/\\]", self.word.partition("?")[0].rstrip("/"))[-1]


def choose(words: list[str], storage: str) -> dict[str, Side]:
    """Label -> side, in the order of the words; labels are names, or whole paths where two runs share a name.

    Raises:
        EvaluationError: a word that names no run, fewer than two sides, or more than a page can show.
        TrackingError: MLflow can't be asked.
    """
    sides = list(dict.fromkeys(side for word in words for side in _sides(word, storage)))
    if len(sides) < 2:
        raise EvaluationError(
            f"{len(sides)} run{'' if len(sides) == 1 else 's'} to compare: name two or more, or NAME{BASE} for a run's "
            "model without its adapter"
        )
    if len(sides) > MOST:
        raise EvaluationError(f"{len(sides)} runs to compare: one page shows at most {MOST}; narrow the query")
    names = [side.name for side in sides]
    return {side.name if names.count(side.name) == 1 else side.word: side for side in sides}


def _sides(word: str, storage: str) -> list[Side]:
    variant: Variant = "base" if word.endswith(BASE) else "tuned"
    return [Side(folder, variant) for folder in _folders(word.removesuffix(BASE), storage)]


def _folders(word: str, storage: str) -> list[str]:
    places = [absolute(word)] if "://" not in word or re.match(r"\w[\w+.-]*://", word) else []
    for place in (*places, join(absolute(storage), word)):
        if any(is_file(join(place, file)) for file in (CLIPS, "summary.json", "recipe.yaml")):
            return [place]
    if RUN_ID.fullmatch(word):
        if folders := run_folders(uri_beside(storage), f"attributes.run_id = '{word}'"):
            return folders
    elif QUERY.search(word):
        found = run_folders(uri_beside(storage), word)
        whole = [folder for folder in found if is_file(join(folder, CLIPS))]
        if len(whole) < len(found):
            logger.info("%d of the query's runs were not evaluated, and are left out", len(found) - len(whole))
        return whole
    raise EvaluationError(
        f"no run {word!r}: it is no folder of jobs/evaluate.py, no name under storage {storage!r}, and no MLflow run "
        f"id or query; runs there: {', '.join(_names(storage)) or 'none'}"
    )


def _names(storage: str) -> list[str]:
    filesystem, inner = locate(storage)
    listed = filesystem.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True))
    names = sorted(entry.base_name for entry in listed if entry.type == pa.fs.FileType.Directory)
    return [name for name in names if is_file(join(join(storage, name), CLIPS))]
