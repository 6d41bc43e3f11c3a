"""Number formats: a recipe's names of them as torch dtypes, and which of them a device computes, not emulates."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from rayvideo.sections import AutoPrecision, Precision

DTYPES: dict[AutoPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Without "auto", which `rayvideo.settling.settle` replaces before anything is loaded."""

PROBE_ROUNDS = 3
CPU = torch.device("cpu")


class Choice(NamedTuple):
    """What an option became on a machine."""

    precision: Precision
    device: str
    """Name of the CPU or GPU."""
    slowdown: float | None
    """How many times as long as fp32 the format takes there, measured; None where it is computed in hardware."""


def choose(option: AutoPrecision, device: torch.device) -> Choice:
    """What `option` means on a device of this machine.

    "auto" is bf16 where the device computes it, else fp32. Any other format stays what it is, but its slowdown is
    measured where it is emulated, which takes a fraction of a second.
    """
    precision: Precision = option if option != "auto" else "bf16" if computes("bf16", device) else "fp32"
    return Choice(precision, _name(device), None if computes(precision, device) else slowdown(precision, device))


def computes(precision: Precision, device: torch.device) -> bool:
    """Whether the device has instructions for the format; without them it is emulated, many times slower than fp32.

    CPUs are asked as oneDNN and ATen use them: ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY can hide instructions.
    """
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    if able["architecture"] != "x86_64":
        return bool(able.get("bf16" if precision == "bf16" else "fp16_arith", False))
    onednn: Callable[[], bool] = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")
    instructions = bool(able[f"avx512_{precision}"] or able[f"amx_{precision}"])
    return instructions and onednn() and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def slowdown(precision: Precision, device: torch.device) -> float:
    """Time of a small convolution in this format over its time in fp32, the best of a few rounds each."""
    layer, images = nn.Conv2d(64, 64, 3, padding=1).to(device), torch.randn(4, 64, 16, 16, device=device)

    def seconds(dtype: torch.dtype) -> float:
        network, pixels = layer.to(dtype), images.to(dtype)
        rounds = []
        for _ in range(PROBE_ROUNDS):
            started = time.perf_counter()
            network(pixels)
            rounds.append(time.perf_counter() - started)
        return min(rounds)

    with torch.no_grad():
        return seconds(DTYPES[precision]) / seconds(torch.float32)


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bf16 where the device computes it; elsewhere a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes("bf16", device))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))
