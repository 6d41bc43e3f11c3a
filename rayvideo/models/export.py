"""Adapters and tuned models in the formats of other programs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayvideo.models import vgen_names
from rayvideo.models.base import ModelError
from rayvideo.models.experts import split_by_expert
from rayvideo.models.files import load_weights
from rayvideo.models.lora import PREFIX, WEIGHTS, is_untrained, load_adapter, means, refuse_untrained
from rayvideo.models.vgen import lora_layout
from rayvideo.staging import written_whole
from rayvideo.weights import require_fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """LoRA: each layer's output gains (alpha / rank)·B·A·x."""

    rank: int
    alpha: float
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
    plain = isinstance(config, LoraConfig) and not (
        config.use_dora or config.use_rslora or config.rank_pattern or config.alpha_pattern or config.lora_bias
    )
    odd = [
        name
        for name in tensors
        if not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    if not plain or odd or not tensors:
        raise ModelError(
            f"{folder}: only plain LoRA of one rank and scale for a denoiser can be exported, without DoRA, rsLoRA, "
            f"biases or patterns" + (f"; it holds {odd[0]}" if odd else "")
        )
    _refuse_incomplete(folder, config, tensors)
    return Adapter(config.r, config.lora_alpha, {name.removeprefix(PREFIX): t for name, t in tensors.items()})


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


def export_diffusers(adapter: str | Path, out: str | Path) -> list[str]:
    """Write the adapter as one .safetensors file as diffusers' `pipe.load_lora_weights` reads it.

    Of a model with two denoisers (`rayvideo.models.experts`) each gets a file: `lora.safetensors` becomes
    `lora-high.safetensors` and `lora-low.safetensors`.

    Returns:
        The files that were written.
    """
    return _export(adapter, out, _diffusers_names)


def export_kohya(adapter: str | Path, out: str | Path) -> list[str]:
    """Write the adapter as one .safetensors file with the key names of kohya's scripts and ComfyUI.

    Of a model with two denoisers each gets a file, as `export_diffusers` says.

    Returns:
        The files that were written.
    """
    return _export(adapter, out, _kohya_names)


def _diffusers_names(lora: Adapter) -> dict[str, Tensor]:
    return {f"unet.{name}": weight for name, weight in lora.scaled().items()}


def _kohya_names(lora: Adapter) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in lora.matrices.items():
        layer, matrix, _ = name.rsplit(".", 2)
        key = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{key}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = weight
        tensors[f"{key}.alpha"] = torch.tensor(float(lora.alpha))
    return tensors


def _export(adapter: str | Path, out: str | Path, renamed: Callable[[Adapter], dict[str, Tensor]]) -> list[str]:
    """Write a file for each denoiser that the adapter is over, all of them or none."""
    lora = read_adapter(adapter)
    refuse_untrained(adapter, lora.matrices)
    if Path(out).suffix != ".safetensors":
        raise ModelError(f"{out}: LoRA is written to one file; its name must end in .safetensors")
    files: dict[str, dict[str, Tensor]] = {}
    for expert, matrices in split_by_expert(lora.matrices).items():
        file = str(out) if expert is None else str(Path(out).with_stem(f"{Path(out).stem}-{expert}"))
        files[file] = renamed(replace(lora, matrices=matrices))
        if is_untrained(matrices):  # one of two, since the adapter as a whole changes something
            logger.warning("%s: its pairs for the expert %r are untrained: %s changes nothing", adapter, expert, file)
    with ExitStack() as stack:
        for file, tensors in files.items():
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, stack.enter_context(written_whole(file)), metadata={"format": "pt"})
    return list(files)


def export_merged(model: str | Path, adapter: str | Path, out: str | Path) -> None:
    """Write the denoiser of a pipeline folder or hub id with the adapter merged in, as diffusers' UNet folder, fp32."""
    unet = _merged(_read_unet(model), adapter)
    with written_whole(out) as folder:
        unet.save_pretrained(folder)


def export_vgen(model: str | Path, out: str | Path, *, adapter: str | Path | None = None, merge: bool = False) -> None:
    """Write the denoiser of a pipeline folder or hub id as a checkpoint that VGen loads strictly, fp32.

    With an adapter it is a UNetSD_LoRA, or with `merge` a UNet without LoRA that has the adapter in its weights.

    Raises:
        ModelError: if the adapter does not fit, or does not cover the very layers that have LoRA in VGen.
    """
    if merge and adapter is None:
        raise ModelError("there is nothing to merge: name the adapter too")
    unet = _read_unet(model)
    lora: dict[str, Tensor] = {}
    if merge and adapter is not None:
        unet = _merged(unet, adapter)
    elif adapter is not None:
        read = read_adapter(adapter)
        names, shapes = lora_layout(unet, read.rank)
        found = {f"{PREFIX}{name}".replace(".weight", ".default.weight"): w for name, w in read.scaled().items()}
        require_fit(shapes, found, f"{adapter} as the LoRA of VGen's UNet (an adapter on other layers can be merged)")
        refuse_untrained(adapter, read.matrices)
        lora = {names[name]: weight for name, weight in found.items()}
    sources, weights = vgen_names.unet_sources(unet), unet.state_dict()
    base = {source.name: weights[name].reshape(source.shape(weights[name].shape)) for name, source in sources.items()}
    with written_whole(out) as file:
        torch.save({"state_dict": base | lora, "step": 0}, file)


def _read_unet(model: str | Path) -> UNet3DConditionModel:
    return load_weights(UNet3DConditionModel, model, "unet")


def _merged(unet: UNet3DConditionModel, adapter: str | Path) -> UNet3DConditionModel:
    tuned = load_adapter(unet, adapter)
    refuse_untrained(adapter, get_peft_model_state_dict(tuned))
    return tuned.merge_and_unload(safe_merge=True)
