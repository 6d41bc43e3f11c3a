"""What a comparison says, in words and figures: summary.json, warnings, and the table on the console."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayvideo.evaluation.compare import Comparison, Figures
from rayvideo.recipe import Recipe

# Changes beyond which a tuned model is called suspicious, however happy its judges are.
MOTION_CHANGE = 0.15  # of the base's, either way
FLICKER_RISE = 0.10  # of the base's
JUDGE_FALL = 0.1  # of the standard deviation of the base's clips


def roles(recipe: Recipe) -> dict[str, str]:
    """Judge -> "training" or "held-out"."""
    training = {judge.name: "training" for judge in recipe.reward.judges}
    return training | {judge.name: "held-out" for judge in recipe.evaluation.judges}


def figures_of(recipe: Recipe, comparison: Comparison) -> dict[str, Any]:
    """The part of summary.json that other programs read; its keys are documented in docs/evaluation.md."""
    figures: dict[str, Any] = {"sets": comparison.sets}
    if comparison.reference:
        figures["reference"] = comparison.reference
    if comparison.has_tuned:
        judges = list(roles(recipe))
        figures["gain_in_base_std"] = by_set({judge: comparison.gain(judge) for judge in judges})
        figures["wins"] = by_set({judge: comparison.wins(judge) for judge in judges})
        figures["warnings"] = warnings(recipe, comparison)
    return figures


def by_set(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Judge -> set -> value as set -> judge -> value."""
    names = {name for column in columns.values() for name in column}
    return {name: {judge: column[name] for judge, column in columns.items()} for name in sorted(names)}


def warnings(recipe: Recipe, comparison: Comparison) -> list[str]:
    """Signs of over-optimisation, a sentence each: what moved the wrong way, on which set and by how much."""
    found = []
    for name, variants in comparison.sets.items():
        base, tuned = variants["base"], variants["tuned"]
        for judge in recipe.evaluation.judges:
            gain = comparison.gain(judge.name)[name]
            if gain is not None and gain < -JUDGE_FALL:
                found.append(f"{name}: held-out judge {judge.name!r} fell by {-gain:.2f} standard deviations")
        motion = change(base, tuned, "motion")
        if abs(motion) > MOTION_CHANGE:
            found.append(f"{name}: motion changed by {motion:+.0%}; up to {MOTION_CHANGE:.0%} is usual")
        flicker = change(base, tuned, "flicker")
        if flicker > FLICKER_RISE:
            found.append(f"{name}: flicker rose by {flicker:.0%}; up to {FLICKER_RISE:.0%} is usual")
        if "kid" in tuned and tuned["kid"]["mean"] > base["kid"]["mean"] + base["kid"]["std"]:
            risen = f"{base['kid']['mean']:.3g} to {tuned['kid']['mean']:.3g}"
            found.append(f"{name}: the clips went away from the real ones, KID {risen}")
    return found


def change(base: Figures, tuned: Figures, metric: str) -> float:
    """(tuned - base) / base of the means; 0 if both are 0."""
    before, after = base[metric]["mean"], tuned[metric]["mean"]
    return 0.0 if before == after else (after - before) / before if before else float("inf")


def print_table(recipe: Recipe, comparison: Comparison, console: Console) -> None:
    """Sets x base / tuned x judges, mean ± standard deviation over clips, and the gain."""
    judges = roles(recipe)
    table = Table(title="judges' raw scores: mean ± standard deviation over clips", title_justify="left")
    table.add_column("captions")
    table.add_column("model")
    for judge, role in judges.items():
        table.add_column(f"{judge}\n({role})", justify="right")
    for name, variants in comparison.sets.items():
        clips = next(iter(variants.values()))[next(iter(judges))]["n"]
        for i, (variant, figures) in enumerate(variants.items()):
            cells = [f"{figures[judge]['mean']:.4f} ± {figures[judge]['std']:.4f}" for judge in judges]
            table.add_row(name if i == 0 else f"({clips} clips)", variant, *cells)
        if comparison.has_tuned:
            gains = [comparison.gain(judge)[name] for judge in judges]
            table.add_row("", "gain", *("–" if gain is None else f"{gain:+.2f} std of base" for gain in gains))
        table.add_section()
    console.print(table)
    if comparison.has_tuned:
        for warning in warnings(recipe, comparison):
            console.print(f"[yellow]warning:[/] {escape(warning)}")
