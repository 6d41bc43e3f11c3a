"""Which number format "auto" is, on the device that runs the tests and on a CPU that has only AVX2."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rayvideo.precision import CPU, autocast, choose, computes

AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def on_avx2(code: str) -> list[object]:
    """What `code` prints as JSON in a process that sees no instructions above AVX2."""
    program = f"import json, torch\nfrom rayvideo.precision import *\nprint(json.dumps({code}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **AVX2_ONLY}, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_auto_is_what_the_cpu_computes() -> None:
    precision, device, slowdown = choose("auto", CPU)
    assert (precision, slowdown) == ("bf16" if computes("bf16", CPU) else "fp32", None)
    assert device


@pytest.mark.skipif(torch.cpu.get_capabilities()["architecture"] != "x86_64", reason="hides x86's instructions")
def test_a_cpu_with_avx2_alone_computes_in_fp32() -> None:
    assert on_avx2("[choose('auto', CPU).precision, computes('bf16', CPU), computes('fp16', CPU)]") == [
        "fp32",
        False,
        False,
    ]


@pytest.mark.skipif(torch.cpu.get_capabilities()["architecture"] != "x86_64", reason="hides x86's instructions")
def test_an_emulated_format_is_kept_and_its_slowdown_measured() -> None:
    precision, _, slowdown = on_avx2("choose('bf16', CPU)")
    assert precision == "bf16"
    assert isinstance(slowdown, float)
    assert slowdown > 0


def test_fp32_is_computed_everywhere() -> None:
    assert choose("fp32", CPU)[0::2] == ("fp32", None)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_format_is_either_computed_or_slowed_down(precision) -> None:
    chosen = choose(precision, CPU)
    assert chosen.precision == precision
    assert (chosen.slowdown is None) == computes(precision, CPU)


def test_autocast_follows_the_rule() -> None:
    with autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if computes("bf16", CPU) else torch.float32)
