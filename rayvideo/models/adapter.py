"""An adapter in PEFT's format as its matrices, for what reads or writes other formats: plain LoRA and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from rayvideo.models.base import ModelError
from rayvideo.models.lora import PREFIX, WEIGHTS, means

MORE = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias")
"""Options of PEFT's by which an adapter is more than plain LoRA of one rank and scale."""


@dataclass(frozen=True)
class Adapter:
    """LoRA: each layer's output gains (alpha / rank)·B·A·x."""

    rank: int
    alpha: float
    denoiser: str | None
    """Class of the denoiser that it was trained on, if its configuration says so."""
    matrices: dict[str, Tensor]
    """`<layer>.lora_A.weight` [rank, in] and `<layer>.lora_B.weight` [out, rank]."""

    def scaled(self) -> dict[str, Tensor]:
        """The matrices for a reader that knows no alpha: the scale is multiplied into B."""
        if self.alpha == self.rank:
            return self.matrices
        scale = self.alpha / self.rank
        return {name: scale * weight if ".lora_B." in name else weight for name, weight in self.matrices.items()}


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a PEFT folder.

    Raises:
        ModelError: if there is none, it is more than plain LoRA of one rank, or it is incomplete.
    """
    folder = Path(folder)
    try:
        config = PeftConfig.from_pretrained(folder)
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # a damaged configuration may make PEFT raise anything
        raise ModelError(f"{folder}: no adapter that can be read (adapter_config.json, {WEIGHTS}): {error}") from error
    plain = isinstance(config, LoraConfig) and not any(getattr(config, option) for option in MORE)
    odd = [
        name
        for name in tensors
        if not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    if not plain or odd or not tensors:
        raise ModelError(
            f"{folder}: only plain LoRA of one rank and scale for a denoiser can be used, without DoRA, rsLoRA, biases "
            f"or patterns" + (f"; it holds {odd[0]}" if odd else "")
        )
    _refuse_incomplete(folder, config, tensors)
    denoiser = (config.auto_mapping or {}).get("base_model_class")
    return Adapter(config.r, config.lora_alpha, denoiser, {name.removeprefix(PREFIX): t for name, t in tensors.items()})


def _refuse_incomplete(folder: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse a matrix without its counterpart, a matrix of another rank than r, and a target without any matrices.

    Other programs would leave such layers out, or scale them wrongly, and not say so.
    """
    if not config.lora_alpha or not math.isfinite(config.lora_alpha):
        raise ModelError(
            f"{folder}: lora_alpha {config.lora_alpha} in adapter_config.json makes nothing of the matrices"
        )
    for name, weight in tensors.items():
        layer, matrix, _ = name.rsplit(".", 2)
        other = f"{layer}.{'lora_B' if matrix == 'lora_A' else 'lora_A'}.weight"
        rank = weight.shape[0 if matrix == "lora_A" else 1]
        if other not in tensors:
            raise ModelError(f"{folder}: {name} has no counterpart {other}")
        if rank != config.r:
            raise ModelError(f"{folder}: {name} is of rank {rank}, but adapter_config.json says r = {config.r}")
    layers = {name.rsplit(".", 2)[0] for name in tensors}
    for target in () if isinstance(config.target_modules, str) else config.target_modules or ():
        if not any(means(target, layer.removeprefix(PREFIX)) for layer in layers):
            raise ModelError(f"{folder}: no matrices for {target!r}, which adapter_config.json has in target_modules")
