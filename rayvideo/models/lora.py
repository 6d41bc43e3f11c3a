"""The trainable adapter: LoRA on the denoiser in PEFT's format, so that diffusers and PEFT load what we save."""

from __future__ import annotations

import logging
import math
import os
import re
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
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from rayvideo import sections
from rayvideo.models.base import ModelError
from rayvideo.weights import misfits

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
UNTRAINED = "{}: the adapter is untrained and changes nothing: the B of each of its pairs is zero"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PREFIX = "base_model.model."
"""What PEFT puts before the names of the denoiser's layers."""


def add_lora(denoiser: nn.Module, options: sections.Lora, seed: int, *, within: str | None = None) -> PeftModel:
    """Give the denoiser a fresh adapter: A normal with σ = 1/r, B = 0, so that its output does not change yet.

    Only the adapter is trainable. Its weights are fp32 whatever the denoiser's format: an update of lr 1e-5 is lost in
    the rounding of bf16. The seed gives the same weights on every device.

    Args:
        within: Name of the part of the denoiser whose layers alone get pairs, such as one of two experts.

    Raises:
        ModelError: if one of `options.targets` names no layer, or one that can't get a pair.
    """
    inside = "" if within is None else f"{within}."
    for target in options.targets:
        meant = [module for name, module in denoiser.named_modules() if name.startswith(inside) and means(target, name)]
        if not meant:
            raise ModelError(
                f"model.lora.targets: no layer of the denoiser is called {target!r}; its layers are {_layers(denoiser)}"
            )
        if other := [type(module).__name__ for module in meant if not isinstance(module, ADAPTABLE)]:
            raise ModelError(
                f"model.lora.targets: {target!r} names a {other[0]}, which has no matrix of its own to adapt; the "
                f"denoiser's layers are {_layers(denoiser)}"
            )
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.targets),
        exclude_modules=None if within is None else rf"(?!{re.escape(inside)}).*",
        init_lora_weights="gaussian",
    )
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapted = get_peft_model(denoiser, config, autocast_adapter_dtype=True).eval()
    if unbound := [target for target in options.targets if not any(means(target, name) for name in pairs(adapted))]:
        raise ModelError(f"model.lora.targets: PEFT put no pair on the layers called {unbound[0]!r}")
    return adapted


def pairs(denoiser: nn.Module) -> list[str]:
    """Names of the denoiser's layers that the adapter gives a pair of matrices; also of an engine that wraps it."""
    adapted = unwrap(denoiser).get_base_model()
    return [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]


def untrained(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of those among an adapter's tensors that are a B matrix of zeros, so that their pairs change nothing."""
    return [name for name, weight in weights.items() if ".lora_B." in name and not weight.any()]


def is_untrained(weights: Mapping[str, Tensor]) -> bool:
    """Whether an adapter changes nothing: all B matrices among its tensors are zero."""
    return bool(found := untrained(weights)) and len(found) == sum(".lora_B." in name for name in weights)


def refuse_untrained(what: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Raise `ModelError`, naming the adapter `what`, if these tensors of it change nothing."""
    if is_untrained(weights):
        raise ModelError(UNTRAINED.format(what))


def means(target: str, name: str) -> bool:
    """Whether a target of PEFT's means the layer of this name: it is the whole name, or its last words."""
    return name == target or name.endswith(f".{target}")


def _layers(denoiser: nn.Module) -> str:
    """What the denoiser's linear layers are called, by the last words of their names."""
    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    return ", ".join(sorted(set(map(last_words, names))))


def last_words(name: str) -> str:
    """The last word of a layer's name, with the numbers that may follow: a target that means the layer."""
    return re.sub(r"^.*?([^.]*[^.\d][^.]*(\.\d+)*)$", r"\1", name)


def lora_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's trainable parameters by name; also of an engine that wraps the denoiser."""
    return {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}


def parameter_count(denoiser: nn.Module) -> int:
    """How many numbers the adapter has."""
    return sum(weight.numel() for weight in lora_parameters(denoiser).values())


@contextmanager
def adapter_disabled(denoiser: nn.Module) -> Iterator[None]:
    """Within this context the denoiser, or the engine that wraps it, is the base model."""
    with unwrap(denoiser).disable_adapter():
        yield


def save_adapter(denoiser: nn.Module, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter in PEFT's format. Files are replaced whole: nobody reads one that is only half written.

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

    On the meta device the adapter is only checked, and put on as shapes. One that changes nothing is warned of.

    Raises:
        ModelError: if the folder holds no adapter, or one that does not fit this denoiser.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no adapter here; a folder with adapter_config.json and {WEIGHTS} is expected")
    try:
        found = load_file(folder / WEIGHTS)
        model = get_peft_model(denoiser, _config(folder, found))
    except Exception as error:  # a damaged configuration may make PEFT raise anything
        raise ModelError(f"{folder}: the adapter can't be loaded: {error}") from error
    if wrong := misfits(get_peft_model_state_dict(model), found):
        raise ModelError(
            f"{folder}: the adapter is of another model: {len(wrong)} tensors are missing, "
            f"unknown or of another shape, such as {wrong[0]!r}"
        )
    if is_untrained(found):
        logger.warning(UNTRAINED.format(folder))
    if next(denoiser.parameters()).device.type != "meta":
        set_peft_model_state_dict(model, found)
    return model.requires_grad_(False).eval()


def _config(folder: Path, weights: Mapping[str, Tensor]) -> LoraConfig:
    """The configuration of the adapter in `folder`; refused if it asks for more than its weights hold."""
    config = PeftConfig.from_pretrained(folder)
    if (
        not isinstance(config, LoraConfig) or config.megatron_config is not None
    ):  # PEFT would import the module that it names
        raise ModelError(f"{folder}: adapter_config.json is not that of a LoRA")
    largest = max((len(weight) for name, weight in weights.items() if ".lora_A." in name), default=0)
    if any(rank > largest for rank in (config.r, *(config.rank_pattern or {}).values())):
        raise ModelError(f"{folder}: adapter_config.json claims a rank that no tensor in {WEIGHTS} has")
    if not all(alpha and math.isfinite(alpha) for alpha in (config.lora_alpha, *(config.alpha_pattern or {}).values())):
        raise ModelError(f"{folder}: lora_alpha in adapter_config.json is 0 or not finite")
    return config


def unwrap(denoiser: nn.Module) -> PeftModel:
    """The PEFT model inside an engine's `module`."""
    inner: Any = denoiser
    while not isinstance(inner, PeftModel):
        inner = inner.module
    return inner
