"""A plan as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rayvideo.planning.choose import Choice, on_card
from rayvideo.planning.estimate import GIB, Estimate, Rates, Rows
from rayvideo.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What a recipe takes, and what would fit."""

    recipe: Recipe
    estimate: Estimate
    rates: Rates
    memory: int | None
    """Bytes of a GPU; None: nobody said."""
    choice: Choice | None
    """The cheapest setting that fits; None: none does, or `memory` is not known."""
    seconds: float
    """That planning took."""

    @property
    def fits(self) -> bool | None:
        """Whether the recipe fits as it is; None: `memory` is not known."""
        return None if self.memory is None else on_card(self.recipe, self.estimate) <= self.memory


def print_plan(plan: Plan, console: Console) -> None:
    """A table of parts, and below it what they come to."""
    training = plan.recipe.training
    table = Table(box=None, pad_edge=False)
    table.add_column()
    table.add_column()
    table.add_column(justify="right")
    workers = f"{training.workers} worker{'s' * (training.workers.max > 1)}, each"
    _part(table, workers, {name: size for name, size in plan.estimate.worker.items() if size})
    for name, rows in plan.estimate.judges.items():
        if rows is None:
            table.add_row(f"judge {name}", "unknown: its class has no shapes() (docs/planning.md)", "?")
        else:
            _part(table, f"judge {name}", rows)
    console.print(table)
    for line in _told(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _part(table: Table, name: str, rows: Rows) -> None:
    for number, (what, size) in enumerate(rows.items()):
        table.add_row("" if number else name, what, _size(size))
    table.add_row("", "[bold]total[/]", f"[bold]{_size(sum(rows.values()))}[/]")


def _size(count: int) -> str:
    """Such as "26.67 GiB" or "12 MiB"."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _told(plan: Plan) -> list[str]:
    training, found = plan.recipe.training, plan.estimate
    lines = [
        "",
        f"batch_size {training.batch_size}, accumulation {training.accumulation}, checkpointing "
        f"{plan.recipe.model.checkpointing}, zero_stage {training.zero_stage}, offload {training.offload}, "
        f"{training.precision}: a step of {found.clips} clips takes {found.seconds:.3g} s or more, at "
        f"{plan.rates.flops / 1e12:.3g} TFLOP/s a worker ({plan.rates.source})",
    ]
    if found.host:
        lines.append(f"offloaded into the memory of the workers' machines: {found.host / GIB:.1f} GiB in all")
    if plan.memory is None:
        return lines
    card = on_card(plan.recipe, found) / GIB
    verdict = "fits" if plan.fits else "does not fit"
    lines.append(f"{verdict}: {card:.1f} GiB on a GPU of {plan.memory / GIB:.1f}, with what shares it")
    return [*lines, _chosen(plan)]


def _chosen(plan: Plan) -> str:
    choice = plan.choice
    if choice is None:
        return "nothing fits: fewer data.frames, a smaller data.height and data.width, or larger GPUs"
    if not choice.changes:
        return "and no setting that fits has a shorter step"
    changes = " ".join(f"{key}={value}" for key, value in choice.changes.items())
    warned = "" if choice.same_numbers else " This trains something else: see docs/planning.md."
    return (
        f"cheapest that fits: {changes}: {on_card(choice.recipe, choice.estimate) / GIB:.1f} GiB, "
        f"{choice.estimate.seconds:.3g} s.{warned}"
    )


def write_json(plan: Plan, file: str) -> None:
    """Bytes and seconds; docs/planning.md lists the keys."""
    found, choice = plan.estimate, plan.choice
    content: dict[str, Any] = {
        "worker": found.worker,
        "host": found.host,
        "judges": found.judges,
        "seconds": found.seconds,
        "clips": found.clips,
        "flops_per_second": plan.rates.flops,
        "rate": plan.rates.source,
        "gpu_memory": plan.memory,
        "fits": plan.fits,
        "choice": None
        if choice is None
        else {
            "changes": choice.changes,
            "same_numbers": choice.same_numbers,
            "worker": choice.estimate.worker,
            "seconds": choice.estimate.seconds,
        },
        "planned_in": plan.seconds,
    }
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
