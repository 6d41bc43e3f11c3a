"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.bench import Record
from benchmarks.gpu.step import PARTS

COLUMNS = ("case", "clips/s", "of usual", "s/step", "TFLOP/clip", "TFLOP/s", "of the card", "peak GiB", *PARTS)


def markdown(run: dict[str, Any], records: Sequence[Record]) -> str:
    """A line about the run and a table for each world; parts are shares of the step."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [f"{run['date']}, {run['card']}, {run['matrix TFLOP/s']:.0f} TFLOP/s in a bf16 product; {versions}."]
    for world in dict.fromkeys(one["world"] for one in records):
        cases = [one for one in records if one["world"] == world]
        usual = next((one["clips/s"] for one in cases if one["case"] == "usual" and "clips/s" in one), None)
        lines += ["", f"**{world}**", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(_cells(one, usual))} |" for one in cases]
    if any(not one.get("warm", True) for one in records):
        lines += ["", "\\* The first step, which no other warmed up."]
    return "\n".join(lines)


def _cells(one: Record, usual: float | None) -> list[str]:
    if "failed" in one:
        return [one["case"], one["failed"], *[""] * (len(COLUMNS) - 2)]
    peak = one["peak GiB"]
    return [
        one["case"] + ("" if one["warm"] else " \\*"),
        f"{one['clips/s']:.3f}",
        "" if usual is None else f"{one['clips/s'] / usual:.2f}",
        f"{one['seconds']:.2f}",
        f"{one['TFLOP/clip']:.0f}",
        f"{one['TFLOP/s']:.0f}",
        f"{one['of the card']:.0%}",
        "" if peak is None else f"{peak:.1f}",
        *(f"{one['parts'][name] / one['seconds']:.0%}" for name in PARTS),
    ]


def flops_table(counts: dict[str, dict[str, dict[str, float]]]) -> str:
    """TFLOP of a clip by part."""
    lines = [f"| | {' | '.join(PARTS[:-1])} | all |", "|---" * (len(PARTS) + 1) + "|"]
    for world, settings in counts.items():
        for setting, parts in settings.items():
            cells = [f"{parts[name] / 1e12:.1f}" for name in PARTS[:-1]]
            lines.append(f"| {world}, {setting} | {' | '.join(cells)} | {sum(parts.values()) / 1e12:.1f} |")
    return "\n".join(lines)
