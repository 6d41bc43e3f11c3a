"""Whether the tensors of a file fit a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, unknown or of another shape in `found`, sorted."""
    shared = expected.keys() & found.keys()
    return sorted(
        [*(expected.keys() ^ found.keys()), *(name for name in shared if expected[name].shape != found[name].shape)]
    )
