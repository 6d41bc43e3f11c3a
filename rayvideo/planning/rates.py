"""How quickly a device multiplies matrices: given, measured here, or assumed."""

from __future__ import annotations

import time

import torch

from rayvideo.planning.estimate import Rates
from rayvideo.precision import DTYPES
from rayvideo.sections import AutoPrecision

ASSUMED: dict[AutoPrecision, float] = {"bf16": 400e12, "fp16": 400e12, "fp32": 40e12}
"""FLOP/s of a GPU that is not here."""
SIDE = {"cuda": 8192, "cpu": 1024}
ROUNDS = 3


def rates_for(gpus: float, precision: AutoPrecision, given: float | None = None) -> Rates:
    """What workers with so many GPUs compute with; measured where this machine has such a device."""
    if given is not None:
        return Rates(given, "given")
    if gpus and not torch.cuda.is_available():
        return Rates(ASSUMED[precision], "assumed: about 40 % of what an H100's matrix units can do; --rate sets it")
    device = torch.device("cuda" if gpus else "cpu")
    return Rates(_measure(device, DTYPES[precision]), "measured here, on products of matrices alone")


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE[device.type]
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the product
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
