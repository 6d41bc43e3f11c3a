"""Curves start at the base, and their margins are on the side that is worse."""

from __future__ import annotations

from rayvideo.evaluation.guarding.curves import guard_curves
from rayvideo.evaluation.guarding.rows import Figure, Row


def row(step: int, change: float) -> Row:
    bounds = (change - 0.1, change + 0.1)
    return Row(
        step,
        20,
        {
            "flicker": Figure("measure", 1, 1, change, None, None, 0.2),
            "motion": Figure("measure", 1, 1, -change, *bounds, 0.4),
            "held_out": Figure("held-out", 1, 1, change, *bounds, 0.2),
            "judge": Figure("training", 1, 1, change, *bounds, 0.2),
        },
    )


def test_curves_of_judges_come_first_and_start_at_the_base() -> None:
    curves = guard_curves([row(10, 0.5), row(20, 1.0)])
    assert [curve.title for curve in curves] == ["judge", "held_out", "flicker", "motion"]
    judge, held_out, flicker, motion = curves
    assert judge.line.split()[0] == f"0.0,{judge.zero:.1f}"
    assert len(judge.line.split()) == 3
    assert len(judge.band.split()) == 6
    assert flicker.band == ""
    assert judge.margin is held_out.margin is None
    assert flicker.margin is not None
    assert motion.margin is not None
    assert flicker.margin < flicker.zero, "higher is worse, and above"
    assert motion.margin > motion.zero
    assert motion.note == "measure, change of the base's; lower is worse; margin 0.4"
    assert held_out.note == "held-out judge, change σ; lower is worse; margin 0.2"


def test_one_row_makes_a_curve_and_none_makes_none() -> None:
    assert len(guard_curves([row(10, 0.0)])) == 4
    assert guard_curves([]) == []
