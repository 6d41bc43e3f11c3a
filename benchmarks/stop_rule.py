"""How often the built-in stop rule cries wolf, and how often it sleeps: histories of runs that are planted.

    python -m benchmarks.stop_rule --runs 200

No model is run. Scores of a base's clips are drawn (a caption's own level, and a seed's chance in it), and those of
tuned clips of the same captions and seeds are these plus what is planted and a chance that grows with the distance from
the base. Rows, intervals, margins and the rule are the package's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rayvideo.evaluation.captions import Prompt, elsewhere
from rayvideo.evaluation.guarding.measured import Measured, compare
from rayvideo.evaluation.guarding.rows import Role, Row
from rayvideo.evaluation.paired import Floats
from rayvideo.runs.verdict import Verdict
from rayvideo.training.overoptimisation import OverOptimised

SETS = ("in_domain", "new", "non")
ROLES: dict[str, Role] = {"judge": "training", "held_out": "held-out", "right_kind": "held-out"}
LEVELS = {
    "judge": (-0.15, 0.20, 0.7),
    "held_out": (-0.1, 0.18, 0.7),
    "right_kind": (0.7, 0.4, 0.5),
    "motion": (0.165, 0.08, 0.4),
    "optical_flow": (0.02, 0.008, 0.4),
    "flicker": (0.085, 0.04, 0.4),
}
"""Metric -> mean and standard deviation of the base's clips, near the menagerie's, and the share of chance in it."""

Course = Callable[[float], Mapping[str, float]]
"""Share of the run that is done -> metric -> change: of judges in standard deviations, of measures as a share."""


def good(done: float) -> Mapping[str, float]:
    """As the menagerie's recipe: both judges gain, motion and flicker fall a little."""
    rise = 1 - (1 - done) ** 2
    return {"judge": 1.4 * rise, "held_out": 1.05 * rise, "motion": -0.04 * rise, "flicker": -0.12 * rise}


def hot(done: float) -> Mapping[str, float]:
    """Too long and too hot: the held-out judge peaks at four tenths, right kinds and motion fall after it."""
    late = max(0.0, done - 0.4) / 0.6
    return {
        "judge": 1.2 * min(1.0, done / 0.4) + 0.8 * late,
        "held_out": 1.0 * min(1.0, done / 0.4) - 1.1 * late,
        "right_kind": -0.7 * late,
        "motion": -0.4 * late,
        "optical_flow": -0.35 * late,
    }


def hacked(done: float) -> Mapping[str, float]:
    """The judge has a hole: it is pleased by what nobody else likes."""
    return {"judge": 4 * done, "held_out": -1.5 * done, "right_kind": -0.8 * done, "flicker": 0.5 * done}


def frozen(done: float) -> Mapping[str, float]:
    """Judges are happy with still pictures; only motion dies."""
    rise = 1 - (1 - done) ** 2
    return {"judge": 1.4 * rise, "held_out": 1.0 * rise, "motion": -0.7 * done, "optical_flow": -0.6 * done}


COURSES: dict[str, Course] = {"good": good, "hot": hot, "hacked": hacked, "frozen": frozen}


class Ended(NamedTuple):
    """What became of a run under the rule."""

    verdict: Verdict | None
    rows: list[Row]


def history(
    course: Course, seed: int, *, captions: int = 8, seeds: int = 1, steps: int = 150, every: int = 15
) -> list[Row]:
    """The rows of a run that goes a course.

    Args:
        captions: Of each of three sets.
        seeds: Clips of each caption.
    """
    chance = np.random.default_rng(seed)
    prompts = tuple(
        Prompt(name, f"{name} {caption}", number)
        for name in SETS
        for caption in range(captions)
        for number in range(seeds)
    )
    of_caption = {metric: np.repeat(chance.normal(size=len(SETS) * captions), seeds) for metric in LEVELS}

    def clips() -> dict[str, Floats]:
        return {
            metric: mean + spread * (np.sqrt(1 - share) * of_caption[metric] + np.sqrt(share) * chance.normal(size=n))
            for metric, (mean, spread, share) in LEVELS.items()
        }

    n = len(prompts)
    base, other = clips(), clips()
    walk = {metric: np.zeros(n) for metric in LEVELS}
    rows = []
    for step in range(every, steps + 1, every):
        planted = course(step / steps)
        tuned = {}
        for metric, (mean, spread, _) in LEVELS.items():
            # Clips leave those of the base by more and more: in the end half as far as another seed's do.
            walk[metric] += chance.normal(size=n) * spread * 0.5 * np.sqrt(every / steps)
            unit = spread if metric in ROLES else mean
            tuned[metric] = base[metric] + planted.get(metric, 0.0) * unit + walk[metric]
        parts = (Measured(prompts, base, None, None), Measured(tuple(elsewhere(prompts)), other, None, None))
        rows.append(compare(step, steps, *parts, Measured(prompts, tuned, None, None), ROLES, {}))
    return rows


def run(rows: list[Row], patience: int = 2) -> Ended:
    """The rule's way through a run's rows, each of which is known one evaluation later, as in training."""
    rule = OverOptimised(patience=patience)
    steps = [row.step for row in rows]
    for number, row in enumerate(rows):
        rule.watch(row)
        last = number + 1 == len(rows)
        if last or number + 2 < len(rows):  # the last two are known together
            verdict = rule(steps[-1] if last else steps[number + 1], {})
            if verdict:
                return Ended(verdict, rows[: number + 1])
    return Ended(None, rows)


def called(ended: Ended) -> bool:
    """Whether the run was ended as over-optimised, and not merely given its best step at its end."""
    return ended.verdict is not None and ended.verdict.reason.startswith("over-optimised")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="of each course")
    parser.add_argument("--captions", type=int, default=8, help="of each of three sets")
    parser.add_argument("--seeds", type=int, default=1, help="clips of each caption")
    args = parser.parse_args()
    print("| course | M | ended | mean step of the verdict | mean step of the product |")
    print("|---|---|---|---|---|")
    for name, course in COURSES.items():
        histories = [history(course, seed, captions=args.captions, seeds=args.seeds) for seed in range(args.runs)]
        for patience in (1, 2, 3):
            verdicts = [e.verdict for e in (run(rows, patience) for rows in histories) if called(e) and e.verdict]
            given, kept = ([getattr(verdict, what) for verdict in verdicts] for what in ("given_at", "step"))
            means = " | ".join(f"{np.mean(numbers):.0f}" if numbers else "–" for numbers in (given, kept))
            print(f"| {name} | {patience} | {len(verdicts)} of {args.runs} | {means} |", flush=True)


if __name__ == "__main__":
    main()
