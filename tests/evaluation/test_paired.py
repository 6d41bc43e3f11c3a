"""Intervals hold the truth as often as they say, and pairs are of one caption and seed or there are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.paired import MIN_CAPTIONS, Estimate, Pairs, change, difference, margin, pairs_of

SEEDS = 3


def drawn(rng: np.random.Generator, captions: int, gain: float = 0.0) -> Pairs:
    """Scores: of the caption (spread 1) and of the seed (1); in `tuned` also what the caption gains (0.5)."""
    names = tuple(f"caption {i}" for i in range(captions) for _ in range(SEEDS))
    base = rng.normal(size=captions).repeat(SEEDS) + rng.normal(size=captions * SEEDS)
    gains = rng.normal(gain, 0.5, captions).repeat(SEEDS) + 0.1 * rng.normal(size=captions * SEEDS)
    return Pairs(names, base, base + gains)


def coverage(draw: Callable[[np.random.Generator], tuple[Estimate | None, float]], times: int = 200) -> float:
    """How often the interval holds the truth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(times):
        estimate, truth = draw(rng)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
    return held / times


@pytest.mark.parametrize(("captions", "least"), [(6, 0.88), (17, 0.91), (40, 0.92)])
def test_the_interval_of_a_difference_holds_the_truth(captions: int, least: float) -> None:
    found = coverage(lambda rng: (difference(drawn(rng, captions, gain=0.3)), 0.3))
    assert least <= found <= 0.98  # above: seeds of one caption would count as captions


def test_the_interval_of_a_change_holds_the_truth() -> None:
    def draw(rng: np.random.Generator) -> tuple[Estimate | None, float]:
        base = rng.lognormal(0, 0.7, 20)
        factors = 0.8 * rng.lognormal(-(0.4**2) / 2, 0.4, 20)
        return change(Pairs(tuple(map(str, range(20))), base, base * factors)), -0.2

    assert 0.89 <= coverage(draw) <= 0.98


def test_pairing_finds_what_two_samples_would_hide() -> None:
    pairs = drawn(np.random.default_rng(1), 40, gain=0.3)
    paired = difference(pairs)
    assert paired.value == pytest.approx(pairs.tuned.mean() - pairs.base.mean())
    mixed = difference(pairs._replace(tuned=np.random.default_rng(2).permutation(pairs.tuned)))
    assert paired.low is not None
    assert mixed.low is not None
    assert mixed.low < 0 < paired.low


def test_more_seeds_of_the_same_captions_are_not_more_captions() -> None:
    few = drawn(np.random.default_rng(0), 10)
    many = Pairs(few.captions * 9, np.tile(few.base, 9), np.tile(few.tuned, 9))
    assert difference(many) == pytest.approx(difference(few))


def test_figures_are_the_same_at_every_call_and_in_every_order() -> None:
    pairs = drawn(np.random.default_rng(3), 12)
    assert difference(pairs) == difference(pairs)
    last = np.arange(len(pairs.base))[::-1]
    turned = Pairs(tuple(pairs.captions[i] for i in last), pairs.base[last], pairs.tuned[last])
    assert difference(turned) == pytest.approx(difference(pairs))


@pytest.mark.parametrize("captions", [1, MIN_CAPTIONS - 1])
def test_few_captions_give_a_figure_without_an_interval(captions: int) -> None:
    pairs = drawn(np.random.default_rng(0), captions)
    found = difference(pairs)
    assert found.value == pytest.approx((pairs.tuned - pairs.base).mean())
    assert (found.low, found.high) == (None, None)
    assert margin(pairs.captions, pairs.base, pairs.tuned) is None


def test_what_does_not_vary_and_what_is_zero() -> None:
    names = tuple(map(str, range(8)))
    same = Pairs(names, np.arange(8.0), np.arange(8.0) + 0.5)
    assert difference(same) == (0.5, 0.5, 0.5)
    assert change(Pairs(names, np.zeros(8), np.ones(8))) is None
    open_ended = change(Pairs(names, np.eye(8)[0], np.ones(8)))  # a draw without the one clip that moves
    assert open_ended is not None
    assert open_ended.high is None


def test_an_estimate_as_text() -> None:
    assert Estimate(0.19, 0.16, 0.22).over(0.2).text("+.2f", " σ") == "+0.95 σ [+0.80, +1.10]"
    assert Estimate(-0.031, -0.05, 0.01).text("+.1%") == "-3.1% [-5.0%, +1.0%]"
    assert Estimate(0.5).over(2).text("+.2f") == "+0.25"


ROWS = [
    {"caption": caption, "seed": seed, "variant": variant, "judge": 10.0 * seed + (variant == "tuned")}
    for variant in ("tuned", "base")
    for seed in (0, 5)
    for caption in ("a cat", "a dog")
]


def test_rows_are_paired_by_caption_and_seed_in_whatever_order() -> None:
    pairs = pairs_of(ROWS[:4] + ROWS[:3:-1], "judge")
    assert pairs.captions == ("a cat", "a dog", "a cat", "a dog")
    assert pairs.base.tolist() == [0, 0, 50, 50]
    assert pairs.tuned.tolist() == [1, 1, 51, 51]


@pytest.mark.parametrize(("lost", "variant"), [(2, "tuned"), (6, "base")])
def test_a_clip_that_is_missing_in_one_variant_is_named(lost: int, variant: str) -> None:
    with pytest.raises(EvaluationError, match=rf"^no {variant} clip of caption 'a cat', seed 5"):
        pairs_of([row for i, row in enumerate(ROWS) if i != lost], "judge")


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_base_under_other_seeds_exceeds_its_margin_as_often_as_is_said(share: float) -> None:
    """Calibrated by two seeds, tried on two others of other captions."""
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(30)]
    beyond = 0
    for _ in range(300):
        one, other = (rng.normal(size=30) + rng.normal(size=(2, 30)) for _ in range(2))
        limit = margin(names, one[0], one[1], share)
        assert limit is not None
        beyond += abs((other[1] - other[0]).mean()) > limit
    assert beyond / 300 == pytest.approx(share, abs=0.035)


def test_a_margin_counts_captions_and_not_clips() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 12))
    names = list(map(str, range(12)))
    once = margin(names, first, second)
    assert margin(names * 4, np.tile(first, 4), np.tile(second, 4)) == pytest.approx(once)
