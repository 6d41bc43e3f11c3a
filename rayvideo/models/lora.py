"""The trainable adapter: LoRA on the denoiser in PEFT's format, so that diffusers and PEFT load what we save."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from rayvideo import sections
from rayvideo.models.base import ModelError
from rayvideo.weights import misfits

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the denoiser's layers."""


def add_lora(denoiser: nn.Module, options: sections.Lora, seed: int) -> PeftModel:
    """Give the denoiser a fresh adapter: A normal with σ = 1/r, B = 0, so that its output does not change yet.

    Only the adapter is trainable. Its weights are fp32 whatever the denoiser's format: an update of lr 1e-5 is lost in
    the rounding of bf16. The seed gives the same weights on every device.

    Raises:
        ModelError: if one of `options.targets` names no layer.
    """
    names = [name for name, _ in denoiser.named_modules()]
    for target in options.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ModelError(f"model.lora.targets: no layer of the denoiser is called {target!r}")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.targets),
        init_lora_weights="gaussian",
    )
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return get_peft_model(denoiser, config, autocast_adapter_dtype=True).eval()


def lora_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's trainable parameters by name; also of an engine that wraps the denoiser."""
    return {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}


@contextmanager
def adapter_disabled(denoiser: nn.Module) -> Iterator[None]:
    """Within this context the denoiser, or the engine that wraps it, is the base model."""
    with unwrap(denoiser).disable_adapter():
        yield


def save_adapter(denoiser: nn.Module, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter in PEFT's format; a reader of `folder` meets the old or the new weights, never a part.

    `state_dict` replaces the denoiser's own tensors where they are partitioned over processes (ZeRO-3).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        unwrap(denoiser).save_pretrained(staging, state_dict=None if state_dict is None else dict(state_dict))
        for file in staging.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staging)


def load_adapter(denoiser: nn.Module, folder: str | Path) -> PeftModel:
    """Give a denoiser without adapter the trained one in `folder`, frozen, for inference.

    Raises:
        ModelError: if the folder holds no adapter, or one that does not fit this denoiser.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no adapter here; a folder with adapter_config.json and {WEIGHTS} is expected")
    try:
        found = load_file(folder / WEIGHTS)
        model = get_peft_model(denoiser, _config(folder, found))
    except Exception as error:  # what PEFT makes of a damaged configuration may be anything
        raise ModelError(f"{folder}: the adapter can't be loaded: {error}") from error
    if wrong := misfits(get_peft_model_state_dict(model), found):
        raise ModelError(
            f"{folder}: the adapter is of another model: {len(wrong)} tensors are missing, "
            f"unknown or of another shape, such as {wrong[0]!r}"
        )
    set_peft_model_state_dict(model, found)
    return model.requires_grad_(False).eval()


def _config(folder: Path, weights: Mapping[str, Tensor]) -> LoraConfig:
    """The configuration of the adapter in `folder`, if it asks for nothing that its weights don't have."""
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig) or config.megatron_config is not None:  # that would import what it names
        raise ModelError(f"{folder}: adapter_config.json is not that of a LoRA")
    largest = max((len(weight) for name, weight in weights.items() if ".lora_A." in name), default=0)
    if any(rank > largest for rank in (config.r, *(config.rank_pattern or {}).values())):
        raise ModelError(f"{folder}: adapter_config.json claims a rank that no tensor in {WEIGHTS} has")
    if not all(math.isfinite(alpha) for alpha in (config.lora_alpha, *(config.alpha_pattern or {}).values())):
        raise ModelError(f"{folder}: lora_alpha in adapter_config.json is not finite")
    return config


def unwrap(denoiser: nn.Module) -> PeftModel:
    """The PEFT model inside an engine's `module`."""
    inner: Any = denoiser
    while not isinstance(inner, PeftModel):
        inner = inner.module
    return inner
