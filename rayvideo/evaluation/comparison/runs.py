"""A run as it is compared: its clips with their scores, its curves, and what it was made with."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.choose import CLIPS, Side
from rayvideo.recipe import Recipe, flatten, parse_recipe, shareable
from rayvideo.runs.folder import RECIPE, begun_with
from rayvideo.storage import is_file, join, read_bytes, read_lines, read_summary
from rayvideo.tracking import RunRef


class Key(NamedTuple):
    """What makes two clips of different models comparable."""

    caption: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Clip:
    """A clip that people look at."""

    content: bytes
    """An mp4."""

    @cached_property
    def digest(self) -> str:
        return hashlib.blake2b(self.content, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Run:
    """One side of a comparison."""

    label: str
    side: Side
    evaluated: Recipe
    """What its clips were made and judged with."""
    options: dict[str, Any]
    """Dotted key -> value: what it was trained with, and how it was evaluated."""
    rows: dict[Key, dict[str, Any]]
    """The rows of clips.parquet, of this side's clips."""
    clips: dict[Key, Clip]
    """Those that lie in its folder."""
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl; none of a base model."""
    ref: RunRef
    """Its MLflow run."""


def read_run(label: str, side: Side) -> Run:
    """Read what `jobs/evaluate.py` left in a run's folder.

    Raises:
        EvaluationError: it was not evaluated, or has no clips of this side.
        RecipeError, StorageError: a file is damaged or of another version.
    """
    folder = side.folder
    details = read_summary(folder).get("evaluation")
    if details is None or not is_file(join(folder, CLIPS)):
        raise EvaluationError(f"{label}: {folder} holds no comparison; run jobs/evaluate.py on it first")
    try:
        table = pq.read_table(io.BytesIO(read_bytes(join(folder, CLIPS)))).to_pylist()
    except pa.ArrowException as error:
        raise EvaluationError(f"{join(folder, CLIPS)} is damaged ({error}); run jobs/evaluate.py again") from error
    rows = {Key(row["caption"], row["seed"], row["steps"]): row for row in table if row["variant"] == side.variant}
    if not rows:
        raise EvaluationError(
            f"{label}: {join(folder, CLIPS)} has no clips of the {side.variant} model; "
            + (f"name {label}:base for those of its base, or evaluate it with its adapter" if table else "it is empty")
        )
    evaluated = parse_recipe(details["recipe"])
    trained = begun_with(folder) if is_file(join(folder, RECIPE)) else evaluated
    files = {key: join(folder, row["file"]) for key, row in rows.items() if row["file"]}
    return Run(
        label,
        side,
        evaluated,
        flatten({**shareable(trained), "evaluation": shareable(evaluated)["evaluation"]}),
        rows,
        {key: Clip(read_bytes(file)) for key, file in files.items() if is_file(file)},
        read_lines(join(folder, "metrics.jsonl")) if side.variant == "tuned" else [],
        RunRef(**details["mlflow"]),
    )
