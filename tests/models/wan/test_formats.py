"""Files in the format that training computes in: the same numbers, and mapped, so that processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo.models import load_model
from tests import tiny_wan
from tests.documents import block_of


@pytest.mark.parametrize("kind", ["2.1", "A14B"])
def test_models_page_writes_files_that_workers_share(
    kind: tiny_wan.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_wan.save_pipeline(tmp_path / "models/wan", kind)
    monkeypatch.chdir(tmp_path)
    exec(block_of("docs/models.md", "python", "WanPipeline"), {})
    converted, shared = weights_of(tmp_path / "models/wan"), weights_of(tmp_path / "models/wan-bf16")
    torch.testing.assert_close(shared, converted, rtol=0, atol=0)
    assert {weight.dtype for weight in shared.values()} == {torch.bfloat16, torch.float32}
    assert all(map(mapped, shared.values()))
    assert not all(map(mapped, converted.values()))


def weights_of(path: Path) -> dict[str, Any]:
    return dict(load_model(path, dtype=torch.bfloat16, parts=("denoiser",)).denoiser.named_parameters())


def mapped(weight: torch.Tensor) -> bool:
    """Whether a weight lies where a file of weights is mapped to."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= weight.data_ptr() < int(last, 16):
            return line.endswith(".safetensors")
    return False
