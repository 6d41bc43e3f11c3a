"""Only clips of the same caption, seed and steps are paired, and differences are those of the pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.differences import differences
from rayvideo.evaluation.comparison.pairing import differing_options, notes, shared
from rayvideo.evaluation.comparison.runs import Key
from rayvideo.evaluation.comparison.votes import wilson
from tests.evaluation.comparison.folders import MANY, read, write_run


def test_what_all_runs_have_is_paired(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", captions=["blue dog", "red cat", "new"], seeds=(1, 2))
    write_run(tmp_path, "third", captions=["red cat", "blue dog"], seeds=(1,))
    runs = read(tmp_path, "first", "second", "third")
    assert shared(runs) == [Key("red cat", 1, 20), Key("blue dog", 1, 20)]
    assert notes(runs, shared(runs))[0].startswith("8 clips have no partner")  # 4 and 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": ["green bird"]}, "no caption is shared .*second has 'green bird'"),
        ({"seeds": (7,)}, "no seed is shared .first has 0, 1; second has 7"),
        ({"steps": 50}, "no number of steps is shared .first has 20; second has 50"),
    ],
)
def test_nothing_in_common_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", **options)
    with pytest.raises(EvaluationError, match=message + ".*evaluate them with the same evaluation.sets"):
        shared(read(tmp_path, "first", "second"))


def test_differences_are_of_pairs(tmp_path: Path) -> None:
    write_run(tmp_path, "first", gain=0.1, captions=MANY)
    write_run(tmp_path, "second", gain=0.15, captions=MANY[::-1])
    runs = read(tmp_path, "first", "second", "first:base")
    (group,) = differences(runs, shared(runs))
    assert (group.set, group.steps, group.pairs, group.captions) == ("new", 20, 12, 6)
    assert [(line.metric, line.role) for line in group.lines] == [
        ("judge", "training judge"),
        ("held_out", "held-out judge"),
        ("motion", "measure"),
    ]
    judge, held_out, motion = group.lines
    assert judge.first == pytest.approx(0.2 + 0.025 + 0.1 + 0.0005)
    # Scores rise along each run's own list: by caption the second's differ by its gain of 0.05, and -0.05 to 0.05.
    second, base = judge.differences
    assert second.change.value == pytest.approx(0.05)
    assert second.change.low == pytest.approx(0.01, abs=0.01)
    assert second.change.high == pytest.approx(0.09, abs=0.01)
    assert second.higher == pytest.approx(5 / 6)
    assert [*base.change] == pytest.approx([-0.1, -0.1, -0.1])
    assert judge.verdict(base) == "worse"
    assert held_out.verdict(held_out.differences[1]) == "better"
    assert motion.verdict(motion.differences[0]) == ""


def test_few_captions_have_no_verdict(tmp_path: Path) -> None:
    for name, gain in (("first", 0.1), ("second", 0.2)):
        write_run(tmp_path, name, gain=gain, seeds=range(9))
    runs = read(tmp_path, "first", "second")
    (group,) = differences(runs, shared(runs))
    (second,) = group.lines[0].differences
    assert second.change.value == pytest.approx(0.1)
    assert [second.change.low, second.change.high] == [None, None]
    assert group.lines[0].verdict(second) == ""


def test_judges_of_one_name_with_other_weights_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", checkpoint="third.pt")
    runs = read(tmp_path, "first", "second")
    (group,) = differences(runs, shared(runs))
    assert [line.metric for line in group.lines] == ["judge", "motion"]
    assert "left out: held_out" in notes(runs, shared(runs))[0]


def test_only_options_that_differ_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    folder = write_run(tmp_path, "second", lr=5e-5)
    runs = read(tmp_path, "first", "second")
    assert differing_options(runs) == {"training.lr": [1e-4, 5e-5]}
    assert notes(runs, shared(runs)) == []
    summary = json.loads((folder / "summary.json").read_text())
    summary["evaluation"]["recipe"]["evaluation"]["guidance"] = 3.5
    (folder / "summary.json").write_text(json.dumps(summary))
    runs = read(tmp_path, "first", "second")
    assert list(differing_options(runs)) == ["training.lr", "evaluation.guidance"]
    assert notes(runs, shared(runs))[0].startswith("evaluation.guidance differ")


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (50, 100, 0.4038, 0.5962)]
)
def test_wilson(wins: float, n: int, low: float, high: float) -> None:
    found = wilson(wins, n)
    assert found == pytest.approx((wins / n, low, high), abs=1e-4)  # scipy.stats.binomtest(...).proportion_ci("wilson")
