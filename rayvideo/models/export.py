"""Adapters and tuned models in the formats of other programs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from rayvideo.models import FAMILIES, VideoModel, layouts, load_model, resolve_family, vgen_names
from rayvideo.models.adapter import Adapter, read_adapter
from rayvideo.models.base import ModelError
from rayvideo.models.experts import Experts, split_by_expert
from rayvideo.models.files import load_weights
from rayvideo.models.lora import PREFIX, is_untrained, load_adapter, refuse_untrained
from rayvideo.models.vgen import lora_layout
from rayvideo.staging import written_whole
from rayvideo.weights import require_fit

logger = logging.getLogger(__name__)

UNET = "unet"
"""Folder of ModelScope's denoiser."""


def family_for(model: str | Path, adapter: str | Path) -> type[VideoModel]:
    """The family of a pipeline folder or hub id that the adapter in a folder is for; no weights of the model are read.

    Raises:
        ModelError: the adapter does not fit the model: one of its tensors would bind to nothing.
    """
    shapes = load_model(model, device="meta", parts=("denoiser",))
    load_adapter(shapes.denoiser, adapter)
    return type(shapes)


def export_diffusers(adapter: str | Path, out: str | Path, family: type[VideoModel] | None = None) -> list[str]:
    """Write the adapter as one .safetensors file as diffusers' `pipe.load_lora_weights` reads it.

    Of a model with two denoisers (`rayvideo.models.experts`) each gets a file: `lora.safetensors` becomes
    `lora-high.safetensors` and `lora-low.safetensors`.

    Args:
        family: Of the model that it was trained on, see `family_for`; None: the one whose denoiser its configuration
            names.

    Returns:
        The files that were written.
    """

    return _export(adapter, out, partial(_scaled, layouts.diffusers), family)


def export_comfyui(adapter: str | Path, out: str | Path, family: type[VideoModel] | None = None) -> list[str]:
    """Write the adapter as one .safetensors file with the layers' names of the family's own code, as ComfyUI has them.

    Of a model with two denoisers each gets a file, and None means the same, as `export_diffusers` says.

    Returns:
        The files that were written.
    """

    return _export(adapter, out, partial(_scaled, layouts.comfyui), family)


def export_kohya(adapter: str | Path, out: str | Path, family: type[VideoModel] | None = None) -> list[str]:
    """Write the adapter as one .safetensors file with the key names of kohya's scripts, which musubi-tuner has too.

    Of a model with two denoisers each gets a file, and None means the same, as `export_diffusers` says.

    Returns:
        The files that were written.
    """
    return _export(adapter, out, _with_alpha, family)


def _scaled(naming: layouts.Naming, lora: Adapter, family: type[VideoModel]) -> dict[str, Tensor]:
    split = {name: name.rsplit(".", 2) for name in lora.matrices}
    return {
        f"{naming(family, split[name][0])}.{split[name][1]}.weight": weight for name, weight in lora.scaled().items()
    }


def _with_alpha(lora: Adapter, family: type[VideoModel]) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in lora.matrices.items():
        layer, matrix, _ = name.rsplit(".", 2)
        key = layouts.kohya(family, layer)
        tensors[f"{key}.{layouts.KOHYAS[matrix]}.weight"] = weight
        tensors[f"{key}.alpha"] = torch.tensor(float(lora.alpha))
    return tensors


def _export(
    adapter: str | Path,
    out: str | Path,
    renamed: Callable[[Adapter, type[VideoModel]], dict[str, Tensor]],
    family: type[VideoModel] | None,
) -> list[str]:
    """Write a file for each denoiser that the adapter is over, all of them or none."""
    lora = read_adapter(adapter)
    refuse_untrained(adapter, lora.matrices)
    if Path(out).suffix != ".safetensors":
        raise ModelError(f"{out}: LoRA is written to one file; its name must end in .safetensors")
    family = family or _family_by_denoiser(adapter, lora)
    files: dict[str, dict[str, Tensor]] = {}
    for expert, matrices in split_by_expert(lora.matrices).items():
        file = str(out) if expert is None else str(Path(out).with_stem(f"{Path(out).stem}-{expert}"))
        files[file] = renamed(replace(lora, matrices=matrices), family)
        if is_untrained(matrices):  # one of two, since the adapter as a whole changes something
            logger.warning("%s: its pairs for the expert %r are untrained: %s changes nothing", adapter, expert, file)
    with ExitStack() as stack:
        for file, tensors in files.items():
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, stack.enter_context(written_whole(file)), metadata={"format": "pt"})
    return list(files)


def _family_by_denoiser(adapter: str | Path, lora: Adapter) -> type[VideoModel]:
    """The family that has the denoiser which the adapter's configuration names.

    Other programs skip tensors whose names they don't know, and do not say so: a guess would be no help.
    """
    for family in map(resolve_family, FAMILIES.values()):
        if lora.denoiser in family.denoisers:
            return family
    raise ModelError(
        f"{adapter}: its configuration names a denoiser of class {lora.denoiser}, which does not say what model it is "
        "for: name the model that it was trained on with --model"
    )


def export_merged(model: str | Path, adapter: str | Path, out: str | Path) -> None:
    """Write the denoiser of a pipeline folder or hub id with the adapter merged in, as diffusers' folder of it, fp32.

    Of a model with two denoisers each gets a folder within `out`, named as in the pipeline's.
    """
    if Path(model, UNET).is_dir():  # what `convert vgen` makes of a UNet alone is no whole pipeline
        merged, component = _merged(_read_unet(model), adapter), UNET
    else:
        loaded = load_model(model, parts=("denoiser",))
        merged, component = _merged(loaded.denoiser, adapter), loaded.component
    networks: dict[str, Any] = {"": merged}
    if isinstance(merged, Experts):
        networks = {component: merged.high, f"{component}_2": merged.low}
    with written_whole(out) as folder:
        for name, network in networks.items():
            network.save_pretrained(Path(folder, name))


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
    return load_weights(UNet3DConditionModel, model, UNET)


def _merged(denoiser: nn.Module, adapter: str | Path) -> Any:
    tuned = load_adapter(denoiser, adapter)
    refuse_untrained(adapter, get_peft_model_state_dict(tuned))
    return tuned.merge_and_unload(safe_merge=True)
