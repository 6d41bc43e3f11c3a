"""Where an evaluation's results go: the run folder and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayvideo.evaluation.compare import Comparison
from rayvideo.evaluation.findings import figures_of, roles
from rayvideo.evaluation.outcome import outcome
from rayvideo.evaluation.workers import Variant
from rayvideo.recipe import Recipe, shareable
from rayvideo.storage import join, locate, read_summary, write_bytes
from rayvideo.tracking import Tracker, captions_input, versions
from rayvideo.tracking.charts import clip_chart, strip_key


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
    figures = figures_of(recipe, comparison)
    if comparison.has_tuned:
        figures["outcome"] = outcome(recipe, comparison)._asdict()
        tracker.tag(outcome=figures["outcome"]["kind"], **{"outcome.reason": figures["outcome"]["reason"]})
    summary = {**read_summary(out), **figures, "evaluation": details}
    write_bytes(join(out, "summary.json"), json.dumps(summary, indent=2).encode())
    return summary


def track(recipe: Recipe, comparison: Comparison, work: Path, tracker: Tracker, step: int) -> None:
    """Log the means of every set, a strip for each shown prompt, and the report with its clips.

    Args:
        step: Optimizer steps behind the tuned model. The base's figures stand at step 0, where training began, so that
            each makes one curve from base to tuned, which later evaluations of the run carry on.
    """
    first = comparison.chains[0]
    for name, path in recipe.evaluation.sets.items():
        captions = dict.fromkeys(row["caption"] for row in first.rows if row["set"] == name)
        tracker.inputs(captions_input(name, path, [*captions]))
    after = max(step, 1)  # of an adapter from elsewhere the steps are not known
    tracker.log(0, curves(recipe, comparison, "base"))
    if comparison.has_tuned:
        tracker.log(after, curves(recipe, comparison, "tuned"))
    for preview in comparison.previews:
        if "tuned" in preview.pixels:
            prompt = preview.prompt
            key = strip_key("eval", prompt.set, prompt.caption)
            tracker.strip(key, after, preview.pixels["base"], preview.pixels["tuned"], prompt.caption)
    tracker.artifacts(work / "report", "report")
    tracker.artifacts(work / "clips.parquet", "report")
    tracker.flush()


def curves(recipe: Recipe, comparison: Comparison, variant: Variant) -> dict[str, float]:
    """One variant's value of each curve in MLflow: the means of every set, and judges' gains over the base."""
    judges = roles(recipe)
    held_out = {judge for judge, role in judges.items() if role == "held-out"}
    values: dict[str, float] = {}
    for chain in comparison.chains:
        # The first keeps the plain names, so that its curves stay one when another number of steps joins.
        source = "eval" if chain is comparison.chains[0] else f"eval-{chain.steps}-steps"
        for name, figures in chain.sets.items():
            for metric, figure in figures[variant].items():
                values[clip_chart(source, name, metric, held_out=held_out)] = figure["mean"]
        for judge in judges if comparison.has_tuned else ():
            for name, gain in chain.gain(judge).items():
                if gain is not None:
                    chart = clip_chart(source, name, judge, held_out=held_out)
                    values[f"{chart}.gain_in_base_std"] = gain if variant == "tuned" else 0.0
    return values
