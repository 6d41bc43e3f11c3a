"""Differences are of one caption and seed, in the right unit, by set and together; what is kept is read back."""

from __future__ import annotations

import numpy as np
import pytest

from rayvideo.evaluation.captions import Prompt, elsewhere
from rayvideo.evaluation.guarding.measured import Measured, compare, pack, unpack
from rayvideo.evaluation.guarding.rows import Role

PROMPTS = tuple(Prompt(name, f"{name} {n}", seed) for name in ("in", "new") for n in range(7) for seed in (3, 5))
ROLES: dict[str, Role] = {"judge": "training", "guard": "held-out"}


def measured(seed: int, prompts: tuple[Prompt, ...] = PROMPTS, features: bool = True) -> Measured:
    chance = np.random.default_rng(seed)
    captions = len({(one.set, one.caption) for one in prompts})
    figures = {"judge": chance.normal(size=28), "guard": chance.normal(size=28), "motion": chance.uniform(1, 2, 28)}
    return Measured(prompts, figures, chance.uniform(1, 2, captions), chance.normal(size=(28, 4)) if features else None)


BASE, OTHER = measured(0), measured(1, tuple(elsewhere(PROMPTS)))
REAL = {"in": np.random.default_rng(5).normal(size=(20, 4)), "new": np.random.default_rng(6).normal(size=(20, 4))}


def changed(**changes: float) -> Measured:
    """The base's clips with every figure of a metric changed by as much."""
    figures = {metric: values + changes.get(metric, 0.0) for metric, values in BASE.figures.items()}
    assert BASE.diversity is not None
    return Measured(PROMPTS, figures, BASE.diversity * changes.get("diversity", 1.0), BASE.features)


def test_changes_are_in_the_units_that_rows_promise() -> None:
    row = compare(10, 60, BASE, OTHER, changed(judge=0.5, motion=-0.3, diversity=0.8), ROLES, REAL)
    judge, motion = row.together["judge"], row.together["motion"]
    assert judge.role == "training"
    assert judge.change == pytest.approx(0.5 / BASE.figures["judge"].std(ddof=1))
    assert judge.low == pytest.approx(judge.change), "every pair says the same"
    assert motion.change == pytest.approx(-0.3 / BASE.figures["motion"].mean())
    assert row.together["diversity"].change == pytest.approx(-0.2)
    assert row.together["guard"].change == 0
    assert row.together["kid"].change == pytest.approx(0, abs=1e-9), "sums in another order"
    assert set(row.sets) == {"in", "new"}
    alone = row.sets["new"]["judge"]
    assert alone.change == pytest.approx(0.5 / BASE.figures["judge"][14:].std(ddof=1))
    assert alone.base == pytest.approx(BASE.figures["judge"][14:].mean())


def test_margins_are_those_of_the_base_and_no_matter_of_what_is_tuned() -> None:
    rows = [compare(10, 60, BASE, OTHER, changed(guard=by), ROLES, REAL) for by in (0.0, 3.0)]
    margins = [[figure.margin for figure in row.together.values()] for row in rows]
    assert margins[0] == margins[1]
    assert all(margin is not None and margin > 0 for margin in margins[0])


def test_the_base_under_other_seeds_is_seldom_beyond_any_margin() -> None:
    beyond = 0
    for seed in range(60):
        base, other, tuned = (measured(3 * seed + n, features=False) for n in range(3))
        row = compare(10, 60, base, other, tuned, ROLES, {})
        guards = [row.together[metric] for metric in ("guard", "motion", "diversity")]
        beyond += any(-figure.change > (figure.margin or 0) for figure in guards)
    assert beyond <= 9, "one in twenty, on seeds that the margins were not calibrated by some more"


def test_one_seed_and_no_real_clips_leave_those_measures_out() -> None:
    prompts = PROMPTS[::2]
    parts = [Measured(prompts, {"judge": np.random.default_rng(seed).normal(size=14)}, None, None) for seed in range(3)]
    row = compare(1, 2, parts[0], parts[1], parts[2], ROLES, {})
    assert set(row.together) == {"judge"}


def test_a_judge_that_gives_all_of_the_bases_clips_one_score_keeps_its_own_unit() -> None:
    same = {"guard": np.ones(28)}
    tuned = {"guard": np.repeat([1.0, 0.5], 14)}
    base, after = (Measured(PROMPTS, figures, None, None) for figures in (same, tuned))
    figure = compare(1, 2, base, base, after, ROLES, {}).together["guard"]
    assert (figure.change, figure.margin) == (-0.25, 0.0)


def test_other_seeds_are_none_of_the_recipes() -> None:
    assert not {prompt.seed for prompt in elsewhere(PROMPTS)} & {prompt.seed for prompt in PROMPTS}
    assert [prompt.caption for prompt in elsewhere(PROMPTS)] == [prompt.caption for prompt in PROMPTS]


def test_what_is_kept_is_read_back_and_only_if_it_was_made_alike() -> None:
    prompts = {"base": BASE.prompts, "other": OTHER.prompts}
    content = pack({"base": BASE, "other": OTHER}, REAL, "this way")
    assert unpack(content, prompts, "that way") is None
    found = unpack(content, prompts, "this way")
    assert found is not None
    parts, real = found
    for metric, values in OTHER.figures.items():
        np.testing.assert_array_equal(parts["other"].figures[metric], values)
    np.testing.assert_array_equal(parts["base"].diversity, BASE.diversity)
    np.testing.assert_array_equal(parts["base"].features, BASE.features)
    np.testing.assert_array_equal(real["new"], REAL["new"])
    bare = Measured(PROMPTS, {"judge": np.ones(28)}, None, None)
    again = unpack(pack({"base": bare}, {}, ""), {"base": PROMPTS}, "")
    assert again is not None
    assert (again[0]["base"].diversity, again[0]["base"].features, again[1]) == (None, None, {})
