"""KID's difference is that of two KIDs, its interval holds the truth, and its margin what comes of nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayvideo.evaluation.guarding.kid import Distances
from rayvideo.evaluation.metrics import kid

WIDTH = 6


def drawn(seed: int, captions: int = 12, seeds: int = 2, shift: float = 0.0, spread: float = 1.0):
    """Captions, and features of the clips of two models, the second's shifted: each caption has its own place."""
    chance = np.random.default_rng(seed)
    names = [f"caption {i}" for i in range(captions) for _ in range(seeds)]
    place = chance.normal(size=(captions, WIDTH)).repeat(seeds, 0)
    first, second = (place + spread * chance.normal(size=place.shape) for _ in range(2))
    return names, first, second + shift, chance.normal(size=(40, WIDTH)) * np.sqrt(1 + spread**2)


def test_it_is_the_difference_of_two_kids() -> None:
    """One seed a caption and subsets of everything: then torchmetrics' KID leaves out what ours does."""
    names, first, second, real = drawn(0, captions=40, seeds=1, shift=0.5)
    one, two = (kid(torch.tensor(x), torch.tensor(real), subsets=1).item() for x in (first, second))
    assert Distances(names, first, second, real).difference().value == pytest.approx(two - one, rel=1e-6)


def test_sides_and_order_matter_as_they_should() -> None:
    names, first, second, real = drawn(1, shift=0.4)
    forth = Distances(names, first, second, real)
    back = Distances(names, second, first, real)
    assert forth.difference().value == pytest.approx(-back.difference().value)
    order = np.random.default_rng(0).permutation(len(names))
    mixed = Distances([names[i] for i in order], first[order], second[order], real)
    assert mixed.difference().value == pytest.approx(forth.difference().value)
    assert Distances(names, first, first, real).difference() == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_a_shift_is_seen_by_interval_and_margin() -> None:
    names, first, second, real = drawn(2, shift=0.7)
    distances = Distances(names, first, second, real)
    found, margin = distances.difference(), distances.margin(0.05)
    assert found.low is not None
    assert margin is not None
    assert found.low > 0
    _, _, other, _ = drawn(2)
    assert found.value > Distances(names, first, other, real).margin(0.05)  # type: ignore[operator]


def test_of_nothing_few_comparisons_are_beyond_the_margin() -> None:
    beyond = 0
    for seed in range(100):
        names, first, second, real = drawn(seed, captions=10, seeds=1)
        distances = Distances(names, first, second, real)
        margin = distances.margin(0.1)
        assert margin is not None
        beyond += abs(distances.difference().value) > margin
    assert 3 <= beyond <= 20


def test_few_captions_have_neither_interval_nor_margin() -> None:
    names, first, second, real = drawn(0, captions=5)
    distances = Distances(names, first, second, real)
    assert distances.difference()[1:] == (None, None)
    assert distances.margin(0.05) is None
