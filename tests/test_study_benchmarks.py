"""The study's questions can be asked, and its tables say what planted runs came to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.arms import Result
from benchmarks.study import BASE, Study, figure, pairs_of, table
from rayvideo.evaluation.paired import difference

FOLDER = Path(__file__).parents[1] / "jobs/recipes/study"
CAPTIONS = {name: [f"{name} {number}" for number in range(12)] for name in ("in_domain", "new")}
METRICS = ("judge", "held_out", "right_kind", "motion", "flicker")
STUDY = Study.model_validate({"question": "?", "paper": "!", "minutes": 1, "arms": {"low": {}, "high": {}}})


def result(arm: str, seed: int, **gains: float) -> Result:
    rng = np.random.default_rng(7)  # the same clips for every arm, moved by its gains
    scores = {
        metric: {
            name: [float(v) for v in 1 + 0.1 * rng.standard_normal(12) + gains.get(metric, 0)] for name in CAPTIONS
        }
        for metric in METRICS
    }
    return Result(arm, seed, 10, 5.0, scores)


RESULTS = [
    result(BASE, 0),
    result("low", 0, held_out=0.05),
    result("high", 0, held_out=0.1, motion=-0.1),
    result("high", 1, held_out=0.3, motion=-0.1),
]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_question_can_be_asked(file: Path) -> None:
    study = Study.read(file)
    arms = study.runs(seeds=2)
    assert [arm.name for arm in arms] == [BASE, *study.arms, *study.arms]
    assert arms[0].seconds == 0
    assert {arm.seconds for arm in arms[1:]} == {60 * study.minutes}
    asked = [(arm.recipe.model_dump_json(exclude={"seed"}), arm.degraded) for arm in arms[1:]]
    assert len(set(asked)) == len(study.arms), "two arms are the same"
    usual = arms[0].recipe.model_dump_json(exclude={"seed"})
    assert (usual, 0.8) in asked, "no arm is the recipe as it is, which the others are compared with"


def test_gains_of_several_runs_are_in_deviations_of_the_base() -> None:
    spread = np.std(RESULTS[0].scores["held_out"]["in_domain"], ddof=1)
    pairs = pairs_of(RESULTS[0], RESULTS[2:], "held_out", CAPTIONS)
    assert len(pairs.base) == 48
    assert len(set(pairs.captions)) == 24
    first = pairs.tuned[:12] - pairs.base[:12]
    np.testing.assert_allclose(first, 0.1 / spread)
    assert difference(pairs).value == pytest.approx(2, rel=0.5)


def test_the_table_has_a_line_for_each_arm_and_the_figure_is_drawn(tmp_path: Path) -> None:
    head, _, low, high = table(STUDY, RESULTS, CAPTIONS).splitlines()
    assert head.count("|") == low.count("|") == high.count("|") == 9
    assert low.startswith("| low | 10 | 0.50 | +0.00 [+0.00, +0.00] | +0.")
    assert high.startswith("| high | 10, 10 | 0.50 |")
    assert "| -10% [-1" in high
    figure(STUDY, RESULTS, CAPTIONS, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
