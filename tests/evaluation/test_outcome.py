"""The line above a comparison, on planted clips: who is called better, hacked, worse, no different or unproven."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from rayvideo.evaluation.compare import Chain, Comparison
from rayvideo.evaluation.outcome import outcome, pooled_change, pooled_gain
from rayvideo.recipe import Recipe, parse_recipe

SETS = {"in_domain": 10, "new": 8}
"""Set -> its captions."""
BASE = {"judge": 0.2, "held_out": 0.3, "right_kind": 0.7, "motion": 0.2, "flicker": 0.05}
SPREAD = {"judge": 0.1, "held_out": 0.2, "right_kind": 0.3, "motion": 0.02, "flicker": 0.005}
"""Of the base's clips, and half of it of the differences between tuned and base."""
KID = {"mean": 0.02, "std": 0.005, "n": 100}


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "evaluation": {
                "judges": [
                    {"name": "held_out", "checkpoint": "other.pt"},
                    {"name": "right_kind", "checkpoint": "another.pt"},
                ],
                "sets": {name: name for name in SETS},
            },
        }
    )


def comparison(kid: float = KID["mean"], seed: int = 0, captions: int | None = None, **gains: float) -> Comparison:
    """Clips of two seeds a caption; `gains` are mean differences: of judges in σ, of measures in shares of the base."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for name, count in SETS.items():
        for number in range(captions or count):
            for clip in range(2):
                key = {"set": name, "caption": f"{name} {number}", "seed": clip}
                base = {metric: rng.normal(BASE[metric], SPREAD[metric]) for metric in BASE}
                moved = {
                    metric: gains.get(metric, 0.0) * (BASE if metric in ("motion", "flicker") else SPREAD)[metric]
                    for metric in BASE
                }
                tuned = {
                    metric: value + moved[metric] + rng.normal(0, 0.5 * SPREAD[metric])
                    for metric, value in base.items()
                }
                rows += [{**key, "variant": "base", **base}, {**key, "variant": "tuned", **tuned}]
    sets: dict[str, Any] = {}
    for name in SETS:
        sets[name] = {}
        for variant in ("base", "tuned"):
            columns = [row for row in rows if (row["set"], row["variant"]) == (name, variant)]
            sets[name][variant] = {
                metric: {
                    "mean": statistics.fmean(row[metric] for row in columns),
                    "std": statistics.stdev(row[metric] for row in columns),
                    "n": len(columns),
                }
                for metric in BASE
            }
            sets[name][variant]["kid"] = {**KID, "mean": kid if variant == "tuned" else KID["mean"]}
    return Comparison([Chain(20, rows, sets)], True, {}, 0, [], 1.0)


def test_gains_are_of_all_clips_each_in_its_sets_deviations() -> None:
    chain = comparison(judge=1.0, motion=-0.1).chains[0]
    assert pooled_gain(chain, "judge").value == pytest.approx(
        np.average([chain.gain("judge")[name] or 0 for name in SETS], weights=[*SETS.values()])
    )
    motion = pooled_change(chain, "motion")
    assert motion is not None
    assert motion.value == pytest.approx(-0.1, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_run_is_better(recipe: Recipe, seed: int) -> None:
    found = outcome(recipe, comparison(judge=1.2, held_out=1.0, motion=-0.05, flicker=-0.15, seed=seed))
    assert found.kind == "better"
    assert "held_out +" in found.reason
    assert " σ [" in found.reason


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"held_out": -0.6}, "held_out fell by 0."),
        ({"held_out": 1.0, "right_kind": -0.5}, "right_kind fell by 0."),
        ({"held_out": 1.0, "motion": -0.4}, "motion fell by "),
        ({"held_out": 1.0, "motion": 0.4}, "motion rose by "),
        ({"held_out": 1.0, "flicker": 0.3}, "flicker rose by "),
        ({"held_out": 1.0, "kid": 0.03}, "(KID) rose by 0.010"),
    ],
)
def test_happy_judges_beside_something_broken_were_hacked(recipe: Recipe, broken: dict[str, Any], said: str) -> None:
    found = outcome(recipe, comparison(judge=1.8, **broken))
    assert found.kind == "hacked"
    assert said in found.reason
    assert "judge +" in found.reason


def test_what_breaks_for_nothing_is_worse(recipe: Recipe) -> None:
    found = outcome(recipe, comparison(judge=-0.5, held_out=-0.5))
    assert found.kind == "worse"
    assert "held_out fell by" in found.reason


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_no_difference_even_if_the_judge_that_trained_it_is_happy(recipe: Recipe, seed: int) -> None:
    assert outcome(recipe, comparison(seed=seed)).kind == "no different"
    assert outcome(recipe, comparison(judge=1.0, seed=seed)).kind == "no different"


def test_an_adapter_that_changes_nothing_is_no_different(recipe: Recipe) -> None:
    same = comparison()
    same.unchanged = True
    assert outcome(recipe, same) == ("no different", "The adapter changes no clip.")


def test_few_captions_prove_nothing(recipe: Recipe) -> None:
    found = outcome(recipe, comparison(judge=2.0, held_out=2.0, captions=2))
    assert found == ("unproven", "Of 4 captions nothing can be said; give it 6 or more.")


def test_the_judge_that_trained_it_proves_nothing(recipe: Recipe) -> None:
    alone = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"judges": ()})})
    found = outcome(alone, comparison(judge=2.0))
    assert found.kind == "unproven"
    assert "add evaluation.judges" in found.reason
