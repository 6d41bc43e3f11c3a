"""Where an evaluation's results go: the run folder and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayvideo.evaluation.compare import Comparison
from rayvideo.evaluation.findings import figures_of, roles
from rayvideo.recipe import Recipe, shareable
from rayvideo.storage import join, locate, read_summary, write_bytes
from rayvideo.tracking import Tracker, versions


def publish(
    recipe: Recipe, comparison: Comparison, adapter: str | None, work: Path, out: str, tracker: Tracker
) -> dict[str, Any]:
    """Copy `work` (clips.parquet, report/) to `out`, and add the figures to `out`/summary.json, which is returned.

    Keys of other jobs in summary.json, such as fine-tuning's, stay as they are.
    """
    filesystem, inner = locate(out)
    filesystem.create_dir(inner, recursive=True)
    pa.fs.copy_files(str(work), inner, source_filesystem=pa.fs.LocalFileSystem(), destination_filesystem=filesystem)
    details = {
        "adapter": adapter,
        "report": join(out, "report/index.html"),
        "clips": join(out, "clips.parquet"),
        "seconds": round(comparison.seconds, 1),
        "unreadable_reference_clips": comparison.unreadable,
        "mlflow": tracker.ref.shareable(),
        "versions": versions(),
        "recipe": shareable(recipe),
    }
    summary = {**read_summary(out), **figures_of(recipe, comparison), "evaluation": details}
    write_bytes(join(out, "summary.json"), json.dumps(summary, indent=2).encode())
    return summary


def track(recipe: Recipe, comparison: Comparison, work: Path, tracker: Tracker, step: int) -> None:
    """Log the means of every set, a strip for each shown prompt, and the report with its clips."""
    for chain in comparison.chains:
        # The first keeps the plain names, so that its curves stay one when another number of steps joins.
        group = "eval" if chain is comparison.chains[0] else f"eval-{chain.steps}-steps"
        means = {
            f"{group}/{name}/{metric}.{variant}": figure["mean"]
            for name, variants in chain.sets.items()
            for variant, figures in variants.items()
            for metric, figure in figures.items()
        }
        gains = {
            f"{group}/{name}/{judge}.gain_in_base_std": gain
            for judge in (roles(recipe) if comparison.has_tuned else ())
            for name, gain in chain.gain(judge).items()
            if gain is not None
        }
        tracker.log(step, means | gains)
    for preview in comparison.previews:
        if "tuned" in preview.pixels:
            prompt = preview.prompt
            name = f"eval/{prompt.set}/{prompt.caption}"
            tracker.strip(name, step, preview.pixels["base"], preview.pixels["tuned"], prompt.caption)
    tracker.artifacts(work / "report", "report")
    tracker.artifacts(work / "clips.parquet", "report")
    tracker.flush()
