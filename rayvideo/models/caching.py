"""Blocks that are skipped where they would hardly say anything new, in steps without a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig


@contextmanager
def first_block_cache(transformers: Sequence[Any], threshold: float) -> Iterator[None]:
    """Within this context diffusers' First Block Cache is on, for one chain of steps.

    Where the first block's residual differs from that of the last whole call by less than `threshold` on average,
    relative to its size, what the other blocks added then is added again.
    """
    with ExitStack() as stack:
        for transformer in transformers:
            transformer.enable_cache(FirstBlockCacheConfig(threshold))
            stack.callback(transformer.disable_cache)
            stack.enter_context(transformer.cache_context("rollout"))
        yield
