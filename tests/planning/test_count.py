"""Bytes and FLOPs of code on the meta device."""

from __future__ import annotations

import torch
from torch import nn

from rayvideo.planning.count import Census

META = torch.device("meta")
KIB = 1024


def kib(count: int) -> torch.Tensor:
    return torch.empty(count * KIB, dtype=torch.uint8, device=META)


def test_views_count_once_and_what_is_gone_no_more() -> None:
    census = Census()
    weight = kib(64)
    census.ignore([weight])
    with census:
        census.phase = "one"
        first = kib(2)
        halves = first.view(2, -1)[0], weight.view(2, -1)
        census.phase = "two"
        second = kib(4)
        del second
        census.phase = "three"
        third = kib(1)
    assert len(halves) == 2
    assert census.peak == {"one": 2 * KIB, "two": 4 * KIB}
    assert census.now.total() == 3 * KIB
    del first, halves, third
    assert census.now.total() == 0


def test_a_backward_pass_is_counted_with_what_it_runs_again() -> None:
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(META).requires_grad_(False)

    def flops(checkpoint: bool) -> int:
        census = Census()
        x = torch.empty(8, 64, device=META, requires_grad=True)
        with census:
            y = torch.utils.checkpoint.checkpoint(layers, x, use_reentrant=False) if checkpoint else layers(x)
            y.sum().backward()
        return census.flops.total()

    product = 2 * 8 * 64 * 64
    assert flops(checkpoint=False) == 4 * product
    assert flops(checkpoint=True) == 5 * product  # what the last layer gives is not needed again


def test_attention_keeps_no_map() -> None:
    census = Census()
    tokens = 4096
    query = torch.empty(1, 2, tokens, 16, device=META, requires_grad=True)
    with census:
        out = nn.functional.scaled_dot_product_attention(query, query, query)
        out.sum().backward()
    assert census.peak.total() < 2 * tokens * tokens
    assert census.flops.total() >= 2 * 2 * 2 * tokens * tokens * 16


def test_code_that_asks_gets_what_follows_from_known_numbers() -> None:
    with Census():
        timesteps = torch.tensor([875.0, 900.0]).to(META)
        assert not (timesteps.expand(2) > 880).all()
        assert (timesteps > 800).all()
        assert torch.empty(2, device=META).isfinite().all()  # nothing known: no alarm
        assert torch.empty(3, device=META).cpu().shape == (3,)
