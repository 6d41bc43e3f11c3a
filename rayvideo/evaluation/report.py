"""report/index.html: one file that needs no server and no network, with the clips inside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rayvideo.evaluation.compare import Chain, Comparison, Figures, Preview
from rayvideo.evaluation.curves import CHART, History, Scale, histories, smoothed
from rayvideo.evaluation.findings import roles, table, warnings
from rayvideo.evaluation.guarding.curves import guard_curves
from rayvideo.evaluation.guarding.rows import Row
from rayvideo.evaluation.outcome import outcome
from rayvideo.evaluation.pages import environment
from rayvideo.evaluation.paired import change
from rayvideo.recipe import Recipe, shareable

MEASURES = {
    "kid": ("KID", "distance of the judged frames' features to those of real clips; lower is nearer"),
    "motion": ("motion", "lasting change per frame, relative to the clip's contrast; 0 is a still picture"),
    "optical_flow": ("optical flow", "how far things move per frame, in frame widths, mean over all pixels"),
    "flicker": ("flicker", "how far pixels stick out of both neighbouring frames, relative to the clip's contrast"),
    "frame_consistency": ("consistency", "correlation of each frame with the next; 1 is a still picture"),
    "contrast": ("contrast", "standard deviation of brightness within a frame, 0 to 0.5"),
    "saturation": ("saturation", "mean saturation of the colours, 0 to 1"),
    "colourfulness": ("colourfulness", "Hasler and Süsstrunk's M3: 0 grey, 33 moderate, 82 high"),
}
MEASURE = "measure"
SLIGHT = 0.05  # gain in standard deviations that gets no colour


@dataclass
class Column:
    """A metric as the table shows it."""

    key: str
    title: str
    role: str
    """"training judge", "held-out judge" or "measure"."""
    note: str


@dataclass
class Cell:
    """One figure of the table."""

    text: str
    spread: str = ""
    tone: str = ""
    """"good", "bad" or neither."""


@dataclass
class Curve:
    """A metric over training, as points of a chart of CHART's size."""

    title: str
    raw: str
    """SVG points of every step."""
    smooth: str
    """SVG points of the running mean."""
    scale: Scale


@dataclass
class Changes:
    """Captions by how much a judge's mean over their seeds changed, from the best to the worst."""

    judge: str
    role: str
    lines: list[Line]


@dataclass
class Line:
    """A caption before and after; positions are percents of the width between the judge's lowest and highest mean."""

    set: str
    caption: str
    text: str
    base: float
    tuned: float


def write_report(
    folder: Path,
    recipe: Recipe,
    comparison: Comparison,
    facts: dict[str, str],
    metrics: str | None = None,
    guards: Sequence[Row] = (),
) -> Path:
    """Write `folder`/report/index.html and return its path.

    Args:
        facts: What the head of the page says, such as run, adapter, commit.
        metrics: Content of the run's metrics.jsonl, for the reward curve.
        guards: What guards found while it was trained.
    """
    columns = _columns(recipe, comparison)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=recipe.tracking.run_name or "evaluation",
            date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
            facts=facts,
            outcome=outcome(recipe, comparison) if comparison.has_tuned else None,
            warnings=warnings(recipe, comparison) if comparison.has_tuned else [],
            has_tuned=comparison.has_tuned,
            columns=columns,
            paper=list(table(recipe, comparison)),
            roles=roles(recipe),
            chains=comparison.chains,
            rows=lambda chain, name: _rows(chain, name, columns),
            reference=[_cell(comparison.reference, column.key) for column in columns] if comparison.reference else [],
            changes=_changes(recipe, comparison.chains[0]) if comparison.has_tuned else None,
            unreadable=comparison.unreadable,
            segments=recipe.reward.segments,
            curves=[_curve(key, points) for key, points in _histories(recipe, metrics or "").items()],
            guards=guard_curves(guards),
            chart=CHART,
            previews=_grouped(comparison.previews, folder),
            recipe=yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True),
        )
    )
    path = folder / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def _columns(recipe: Recipe, comparison: Comparison) -> list[Column]:
    resize = {judge.name: judge.resize for judge in (*recipe.reward.judges, *recipe.evaluation.judges)}
    columns = [
        Column(name, name, f"{role} judge", f"raw score; frames resized {resize[name]}")
        for name, role in roles(recipe).items()
    ]
    measured = next(iter(comparison.chains[0].sets.values()))["base"]
    return columns + [Column(key, title, MEASURE, note) for key, (title, note) in MEASURES.items() if key in measured]


def _rows(chain: Chain, name: str, columns: Sequence[Column]) -> dict[str, list[Cell]]:
    """Row title -> cells: base, tuned and what changed."""
    variants = chain.sets[name]
    rows = {str(variant): [_cell(figures, column.key) for column in columns] for variant, figures in variants.items()}
    if "tuned" in variants:
        rows["change"] = [_change(chain, name, column) for column in columns]
    return rows


def _cell(figures: Figures, key: str) -> Cell:
    if key not in figures:
        return Cell("–")
    mean, deviation = figures[key]["mean"], figures[key]["std"]
    decimals = 4 if abs(mean) < 10 else 1
    return Cell(f"{mean:.{decimals}f}", f"± {deviation:.{decimals}f}")


def _change(chain: Chain, name: str, column: Column) -> Cell:
    base, tuned = chain.sets[name]["base"], chain.sets[name]["tuned"]
    if column.key == "kid":  # may be around 0, where a share says nothing
        return Cell(f"{tuned['kid']['mean'] - base['kid']['mean']:+.4f}")
    if column.role == MEASURE:
        changed = change(chain.pairs(name, column.key))
        return Cell(changed.text("+.1%") if changed else "–")
    gain = chain.paired_gain(column.key)[name]
    better = f"better in {chain.wins(column.key)[name]:.0%}"
    if gain is None:
        return Cell("–", better)
    tone = "good" if gain.value > SLIGHT else "bad" if gain.value < -SLIGHT else ""
    return Cell(gain.text("+.2f", " σ"), better, tone)


def _changes(recipe: Recipe, chain: Chain) -> Changes:
    """By the first held-out judge, or by the first that trained where there is none."""
    judges = roles(recipe)
    judge = next((name for name, role in judges.items() if role == "held-out"), next(iter(judges)))
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in chain.rows:
        each = scores.setdefault((row["set"], row["caption"]), {"base": [], "tuned": []})
        each[row["variant"]].append(row[judge])
    means = {key: (fmean(each["base"]), fmean(each["tuned"])) for key, each in scores.items()}
    lowest = min(min(pair) for pair in means.values())
    width = max(max(pair) for pair in means.values()) - lowest or 1.0
    lines = [
        Line(name, caption, f"{tuned - base:+.3f}", *(100 * (mean - lowest) / width for mean in (base, tuned)))
        for (name, caption), (base, tuned) in sorted(means.items(), key=lambda item: item[1][0] - item[1][1])
    ]
    return Changes(judge, judges[judge], lines)


def _histories(recipe: Recipe, metrics: str) -> dict[str, History]:
    """Reward curves of metrics.jsonl."""
    keys = ["reward", *(f"score/{judge.name}" for judge in recipe.reward.judges)]
    return histories(map(json.loads, metrics.splitlines()), keys)


def _curve(title: str, history: History) -> Curve:
    scale = Scale.of([history])
    return Curve(title, scale.points(history), scale.points(smoothed(history)), scale)


def _grouped(previews: Sequence[Preview], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Set -> its shown prompts with their clips as data URIs, so that the page works wherever it is opened."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for preview in previews:
        clips = {
            variant: "data:video/mp4;base64," + base64.b64encode((folder / file).read_bytes()).decode()
            for variant, file in preview.files.items()
        }
        entry = {"caption": preview.prompt.caption, "seed": preview.prompt.seed, "clips": clips}
        groups.setdefault(preview.prompt.set, []).append(entry)
    return groups
