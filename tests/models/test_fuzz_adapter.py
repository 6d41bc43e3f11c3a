"""Adapter and pipeline folders whose files are damaged: refused by name, without the memory that they claim."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from rayvideo.models import ModelError, load_model
from rayvideo.models.lora import load_adapter

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def denoiser(tiny_pipeline: Path) -> nn.Module:
    return load_model(tiny_pipeline, parts=("denoiser",)).denoiser


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"{", b"\xff", b"[" * 9999])
def test_a_damaged_adapter_config_is_refused(
    denoiser: nn.Module, adapter: Path, tmp_path: Path, content: bytes
) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG).write_bytes(content)
    with pytest.raises(ModelError, match="adapter: the adapter can't be loaded"):
        load_adapter(copy.deepcopy(denoiser), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 2**40),
        ("r", -1),
        ("r", "four"),
        ("rank_pattern", {"to_q": 2**40}),
        ("lora_alpha", float("nan")),
        ("lora_alpha", "x"),
        ("target_modules", [[1]]),
        ("peft_type", "PREFIX_TUNING"),
        ("peft_type", 3),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
    ],
)
def test_a_config_that_asks_for_what_the_weights_lack(
    denoiser: nn.Module, adapter: Path, tmp_path: Path, key: str, value: Any
) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((adapter / CONFIG).read_text()) | {key: value}
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="adapter: the adapter "):
        load_adapter(copy.deepcopy(denoiser), tmp_path / "adapter")


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_pipeline_config_is_refused(tiny_pipeline: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    whole = json.loads((tiny_pipeline / file).read_text())
    for content in ("", "[]", "3", "null", "[" * 9999, json.dumps({**whole, "norm_num_groups": 0, "beta_start": "x"})):
        (tmp_path / "pipeline" / file).write_text(content)
        if file == "model_index.json" and "norm_num" in content:
            continue
        with pytest.raises(ModelError, match="pipeline"):
            load_model(tmp_path / "pipeline", parts=("vae",))
