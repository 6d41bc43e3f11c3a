"""What a comparison says, in words and figures: summary.json, warnings, and the table on the console."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayvideo.evaluation import paired
from rayvideo.evaluation.compare import Chain, Comparison, Figures
from rayvideo.evaluation.heldout import trained_on
from rayvideo.evaluation.workers import Variant
from rayvideo.recipe import Recipe

# Changes beyond which a tuned model is called suspicious, however happy its judges are.
MOTION_CHANGE = 0.15  # of the base's, either way
FLICKER_RISE = 0.10  # of the base's
JUDGE_FALL = 0.1  # of the standard deviation of the base's clips


def roles(recipe: Recipe) -> dict[str, str]:
    """Judge -> "training" or "held-out"; weights that training listens to are "training" wherever they are listed."""
    trained = trained_on(recipe)
    judges = (*recipe.reward.judges, *recipe.evaluation.judges)
    return {judge.name: "training" if judge.name in trained else "held-out" for judge in judges}


def figures_of(recipe: Recipe, comparison: Comparison) -> dict[str, Any]:
    """The part of summary.json that other programs read; its keys are documented in docs/evaluation.md."""
    by_steps = {str(chain.steps): _figures_of(recipe, chain, comparison.has_tuned) for chain in comparison.chains}
    figures = {**by_steps[str(comparison.chains[0].steps)], "by_steps": by_steps}
    if comparison.reference:
        figures["reference"] = comparison.reference
    if comparison.has_tuned:
        figures["warnings"] = warnings(recipe, comparison)
    return figures


def _figures_of(recipe: Recipe, chain: Chain, has_tuned: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {"sets": chain.sets}
    if has_tuned:
        judges = list(roles(recipe))
        figures["gain_in_base_std"] = by_set({judge: chain.gain(judge) for judge in judges})
        figures["wins"] = by_set({judge: chain.wins(judge) for judge in judges})
        figures["paired"] = {name: _paired(chain, name, judges) for name in chain.sets}
    return figures


def _paired(chain: Chain, name: str, judges: list[str]) -> dict[str, dict[str, Any]]:
    """Metric -> what the set's pairs say of it; KID has none, since it is no figure of a clip."""
    found = {}
    for metric in (metric for metric in chain.sets[name]["base"] if metric != "kid"):
        pairs = chain.pairs(name, metric)
        relative = {
            "gain_in_base_std": chain.paired_gain(metric)[name] if metric in judges else None,
            "change": None if metric in judges else paired.change(pairs),
        }
        found[metric] = {
            "clips": len(pairs.base),
            "captions": len(set(pairs.captions)),
            "difference": paired.difference(pairs)._asdict(),
            **{key: estimate._asdict() for key, estimate in relative.items() if estimate},
        }
    return found


def by_set(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Judge -> set -> value as set -> judge -> value."""
    names = {name for column in columns.values() for name in column}
    return {name: {judge: column[name] for judge, column in columns.items()} for name in sorted(names)}


def warnings(recipe: Recipe, comparison: Comparison) -> list[str]:
    """Signs of over-optimisation, a sentence each: what moved the wrong way, on which set and by how much.

    Of an adapter that changes no clip, that it does not.
    """
    if comparison.unchanged:
        return ["the adapter changes nothing: every clip of the tuned model is the base's, bit for bit"]
    several = len(comparison.chains) > 1
    return [
        warning
        for chain in comparison.chains
        for name in chain.sets
        for warning in _warnings(recipe, chain, name, f"{name}, {chain.steps} steps" if several else name)
    ]


def _warnings(recipe: Recipe, chain: Chain, name: str, where: str) -> list[str]:
    found = []
    base, tuned = chain.sets[name]["base"], chain.sets[name]["tuned"]
    for judge in recipe.evaluation.judges:
        gain = chain.gain(judge.name)[name]
        if gain is not None and gain < -JUDGE_FALL:
            role = roles(recipe)[judge.name]
            found.append(f"{where}: {role} judge {judge.name!r} fell by {-gain:.2f} standard deviations")
    motion = change(base, tuned, "motion")
    if abs(motion) > MOTION_CHANGE:
        found.append(f"{where}: motion changed by {motion:+.0%}; up to {MOTION_CHANGE:.0%} is usual")
    flicker = change(base, tuned, "flicker")
    if flicker > FLICKER_RISE:
        found.append(f"{where}: flicker rose by {flicker:.0%}; up to {FLICKER_RISE:.0%} is usual")
    if "kid" in tuned and tuned["kid"]["mean"] > base["kid"]["mean"] + base["kid"]["std"]:
        risen = f"{base['kid']['mean']:.3g} to {tuned['kid']['mean']:.3g}"
        found.append(f"{where}: the clips went away from the real ones, KID {risen}")
    return found


def change(base: Figures, tuned: Figures, metric: str) -> float:
    """(tuned - base) / base of the means; 0 if both are 0."""
    before, after = base[metric]["mean"], tuned[metric]["mean"]
    return 0.0 if before == after else (after - before) / before if before else float("inf")


def table(recipe: Recipe, comparison: Comparison) -> Iterator[tuple[str, int, str, list[str]]]:
    """The form of the paper's Table 1: judge, steps D, model, and a cell for each set."""
    for judge in roles(recipe):
        for chain in comparison.chains:
            variants: list[Variant] = ["base", "tuned"] if comparison.has_tuned else ["base"]
            for variant in variants:
                figures = [each[variant][judge] for each in chain.sets.values()]
                yield judge, chain.steps, variant, [f"{f['mean']:.4f} ± {f['std']:.4f}" for f in figures]
            if comparison.has_tuned:
                gains = chain.paired_gain(judge).values()
                yield judge, chain.steps, "gain", [gain.text("+.2f", " σ") if gain else "–" for gain in gains]


def print_table(recipe: Recipe, comparison: Comparison, console: Console) -> None:
    """Judges x steps x base / tuned / gain in rows, sets in columns."""
    judges = roles(recipe)
    shown = Table(
        title="judges' raw scores: mean ± standard deviation over clips; σ: that of the base's clips; [95 % interval]",
        title_justify="left",
    )
    for title in ("judge", "D", "model"):
        shown.add_column(title)
    for name, variants in comparison.chains[0].sets.items():
        shown.add_column(f"{name}\n({variants['base'][next(iter(judges))]['n']} clips)", justify="right")
    last = ("", 0)
    for judge, steps, model, cells in table(recipe, comparison):
        if last[0] not in ("", judge):
            shown.add_section()
        title = "" if last[0] == judge else f"{judge} ({judges[judge]})"
        shown.add_row(title, "" if last == (judge, steps) else str(steps), model, *cells)
        last = (judge, steps)
    console.print(shown)
    if comparison.has_tuned:
        for warning in warnings(recipe, comparison):
            console.print(f"[yellow]warning:[/] {escape(warning)}")
