"""The built-in stop rule: good runs go on, hot ones end in favour of their peak, a hacked judge is caught."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.stop_rule import called, good, hacked, history, hot, run
from rayvideo.errors import RecipeError
from rayvideo.evaluation.guarding.rows import Figure, Role, Row
from rayvideo.sections import Training
from rayvideo.training.overoptimisation import OverOptimised, examine, falls
from rayvideo.training.stop_rule import Stopping, WatchfulRule, load_rule

NAME = "rayvideo.training.overoptimisation:OverOptimised"


def row(step: int, steps: int = 60, *, margin: float | None = 0.2, **changes: float) -> Row:
    """A row of a judge, a held-out one, and measures."""
    roles: dict[str, Role] = {"judge": "training", "held_out": "held-out"}
    figures = {
        metric: Figure(roles.get(metric, "measure"), 0.0, 0.0, change, None, None, margin)
        for metric, change in changes.items()
    }
    return Row(step, steps, figures)


RISING = [row(10 * n, judge=0.4 * n, held_out=0.2 * n, motion=-0.02 * n) for n in (1, 2, 3)]


def test_good_runs_are_not_ended_in_five_seeds() -> None:
    for seed in range(5):
        ended = run(history(good, seed))
        assert not called(ended), ended.verdict


def test_hot_runs_are_ended_in_favour_of_their_peak() -> None:
    for seed in range(3):
        ended = run(history(hot, seed))
        assert called(ended)
        assert ended.verdict is not None
        assert 45 <= ended.verdict.step <= 75, "the held-out judge peaks at 60"
        assert ended.verdict.given_at < 150, "at the last step there is nothing left to save"


def test_a_hacked_judge_is_caught() -> None:
    for seed in range(3):
        ended = run(history(hacked, seed))
        assert called(ended)
        assert ended.verdict is not None
        assert ended.verdict.step <= 30
        assert ended.verdict.given_at <= 120


def test_the_reason_has_the_figures() -> None:
    rows = [*RISING, row(40, judge=1.5, held_out=0.1, motion=-0.08), row(50, judge=1.9, held_out=0.05, motion=-0.3)]
    assert examine(rows[:4], 2).reason is None, "once is not twice"
    finding = examine(rows, 2)
    assert finding.best == 30
    assert finding.reason == (
        "over-optimised: from step 30 to step 50 the training judge went from +1.20 σ to +1.90 σ, while held_out fell "
        "from +0.60 σ to +0.05 σ (margin 0.20) and motion changed by -30% (margin 20%); guards were beyond their "
        "margins in 2 evaluations in a row; step 30 has the largest held-out gain (+0.60 σ) of those whose guards hold"
    )


@pytest.mark.parametrize(
    ("metric", "change", "fallen"),
    [
        ("motion", -0.21, True),
        ("motion", 0.5, False),
        ("optical_flow", -0.21, True),
        ("flicker", 0.21, True),
        ("flicker", -0.5, False),
        ("diversity", -0.21, True),
        ("kid", 0.21, True),
        ("kid", -0.21, False),
        ("held_out", -0.21, True),
        ("held_out", -0.19, False),
        ("judge", -5.0, False),
    ],
)
def test_each_guard_falls_one_way(metric: str, change: float, fallen: bool) -> None:
    assert [fall.metric for fall in falls(row(10, 60, margin=0.2, **{metric: change}), [])] == [metric] * fallen


def test_without_a_margin_nothing_falls() -> None:
    assert falls(row(10, margin=None, held_out=-9.0, motion=-1.0), []) == []


def test_a_judge_that_loses_what_it_gained_is_no_over_optimisation() -> None:
    lost = [*RISING, *(row(step, judge=0.3, held_out=-1.0) for step in (40, 50))]
    assert examine(lost, 2).reason is None
    idle = [row(step, judge=0.1, held_out=-1.0) for step in (10, 20, 30)]
    assert examine(idle, 2).reason is None, "it gained no more than chance gives"


def test_where_no_guards_hold_the_base_is_said_to_be_better() -> None:
    finding = examine([row(step, judge=step / 10, held_out=-step / 10) for step in (10, 20)], 2)
    assert (finding.best, finding.holds) == (10, False)
    assert "from the base to step 20" in str(finding.reason)
    assert str(finding.reason).endswith("(-1.00 σ), but no step's guards hold: the base is better")


def test_a_step_that_is_looked_at_stays_until_its_row_is_known() -> None:
    stopping = Stopping(Training(stop_rule=NAME))
    stopping.hold(10)
    assert stopping.must_save(10)
    saved = stopping.saved()
    assert saved is not None
    assert saved.keep == (10,)
    stopping.hold(20)
    assert stopping.watch(row(10, judge=1.0, held_out=0.5)) is None
    assert stopping.ask(20, {}) is None
    saved = stopping.saved()
    assert saved is not None
    assert saved.keep == (10, 20), "the best so far, and the one that is away"
    stopping.watch(row(20, judge=2.0, held_out=0.9))
    assert stopping.ask(30, {}) is None
    saved = stopping.saved()
    assert saved is not None
    assert saved.keep == (20,)


def test_it_remembers_what_it_knew_and_takes_no_row_twice() -> None:
    rows = [*RISING, row(40, judge=1.5, held_out=0.1)]
    rule = OverOptimised(patience=2)
    for one in rows:
        rule.watch(one)
        assert rule(one.step, {}) is None
    again = OverOptimised(patience=2)
    again.restore(json.loads(json.dumps(rule.state())))
    assert again.keep == 30
    again.watch(rows[-1])
    assert again(45, {}) is None, "the newest row comes again after a resumption, and is one row still"
    again.watch(row(50, judge=1.6, held_out=0.0))
    verdict = again(60, {})
    assert verdict is not None
    assert (verdict.step, verdict.given_at) == (30, 60)


def test_after_the_last_step_the_best_one_is_the_product() -> None:
    rule = OverOptimised(patience=3)
    for one in [*RISING, row(60, judge=1.5, held_out=0.1, motion=-0.08)]:
        rule.watch(one)
    verdict = rule(60, {})
    assert verdict is not None
    assert (verdict.step, verdict.given_at) == (30, 60)
    assert verdict.reason == (
        "all 60 steps are done: step 30 has the largest held-out gain (+0.60 σ) of those whose guards hold, the last "
        "step's is +0.10 σ; held_out fell from +0.60 σ to +0.10 σ (margin 0.20)"
    )
    best = OverOptimised()
    best.watch(row(60, judge=1.5, held_out=0.1))
    assert best(60, {}) is None, "the last step's adapter is the product anyway"


def test_it_may_warn_once_in_place_of_ending_the_run() -> None:
    rule = OverOptimised(patience=1, action="warn")
    said = [rule.watch(one) for one in (row(10, judge=1.0, held_out=-1.0), row(20, judge=2.0, held_out=-2.0))]
    assert str(said[0]).startswith("over-optimised: from the base to step 10")
    assert said[1] is None
    assert rule(20, {}) is None
    assert rule.keep == 10
    restored = OverOptimised(patience=1, action="warn")
    restored.restore(rule.state())
    assert restored.watch(row(30, judge=3.0, held_out=-3.0)) is None


def test_it_is_a_rule_that_watches_and_its_options_are_checked() -> None:
    assert isinstance(load_rule(Training(stop_rule=NAME, stop_options={"patience": 3})), WatchfulRule)
    for options, message in (
        ({"patience": 0}, "patience 0 is not allowed"),
        ({"action": "halt"}, "allowed: stop, warn"),
        ({"margin": 1}, "margin is not"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_rule(Training(stop_rule=NAME, stop_options=options))


def test_it_decides_without_ray_and_mlflow() -> None:
    code = (
        "import sys\nfor one in ('ray', 'mlflow', 'deepspeed'): sys.modules[one] = None\n"
        "import rayvideo.evaluation.guarding.measured, rayvideo.training.overoptimisation"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
