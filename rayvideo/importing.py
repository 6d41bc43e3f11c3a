"""Imports of large libraries, made without what only slows them down."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """While the block imports, Python's collector of cycles rests.

    torch and what builds on it make most of a million objects that stay. The collector would look through all of them
    again and again, which is a fifth of an import's time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
