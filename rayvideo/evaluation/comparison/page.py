"""The page: one file that needs no server and no network, with the clips and the blind comparison inside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from markupsafe import Markup

from rayvideo.evaluation.comparison.differences import Group
from rayvideo.evaluation.comparison.pairing import differing_options, notes
from rayvideo.evaluation.comparison.runs import Key, Run
from rayvideo.evaluation.comparison.trials import trials
from rayvideo.evaluation.comparison.votes import WinRate
from rayvideo.evaluation.curves import CHART, Scale, histories, smoothed
from rayvideo.evaluation.pages import PAGES, environment
from rayvideo.evaluation.paired import MIN_CAPTIONS
from rayvideo.evaluation.report import MEASURES


class Chart(NamedTuple):
    """A metric of several runs."""

    title: str
    scale: Scale
    lines: dict[str, tuple[str, str]]
    """Label -> SVG points of every step, and of the running mean."""


def page(runs: Sequence[Run], keys: Sequence[Key], groups: Sequence[Group], rates: list[WinRate], seed: int) -> str:
    """The page's HTML.

    Args:
        keys: What all runs have clips of, by `shared`.
        rates: What people voted so far.
        seed: Root of the blind comparison's order and sides.
    """
    script, *_ = PAGES.get_source(environment(), "vote.js")
    shown = [key for key in keys if all(key in run.clips for run in runs)]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=" · ".join(run.label for run in runs),
            date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
            runs=runs,
            number={run.label: number for number, run in enumerate(runs)},
            notes=notes(runs, keys),
            rates=rates,
            shown=_by_set(runs, shown),
            source=lambda clip: "data:video/mp4;base64," + base64.b64encode(clip.content).decode(),
            blind=_blind(runs, shown, seed),
            groups=groups,
            min_captions=MIN_CAPTIONS,
            measures=MEASURES,
            charts=_charts(runs),
            chart=CHART,
            options=differing_options(runs),
            script=Markup(script),  # ours, and the only one that the page's policy lets run
            policy=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        )
    )


def _by_set(runs: Sequence[Run], keys: Sequence[Key]) -> dict[str, list[Key]]:
    names = dict.fromkeys(runs[0].rows[key]["set"] for key in keys)
    return {name: [key for key in keys if runs[0].rows[key]["set"] == name] for name in names}


def _blind(runs: Sequence[Run], keys: Sequence[Key], seed: int) -> dict[str, Any]:
    """What the script reads; `id` is the place in the browser where the votes are kept."""
    content = {
        "seed": seed,
        "runs": {run.label: run.side.word for run in runs},
        "trials": [trial.model_dump() for trial in trials(runs, keys, seed)],
    }
    return {"id": hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest(), **content}


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """Reward and the judges' scores while training, of the runs that have them."""
    judges = dict.fromkeys(judge.name for run in runs for judge in run.evaluated.reward.judges)
    keys = ["reward", *(f"score/{judge}" for judge in judges)]
    curves = {run.label: histories(run.metrics, keys) for run in runs}
    charts = []
    for key in keys:
        if found := {label: curve[key] for label, curve in curves.items() if key in curve}:
            scale = Scale.of(found.values())
            lines = {label: (scale.points(curve), scale.points(smoothed(curve))) for label, curve in found.items()}
            charts.append(Chart(key, scale, lines))
    return charts
