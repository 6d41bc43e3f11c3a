"""Plain LoRA as PEFT, diffusers, ComfyUI, kohya's scripts and their relatives write it, read as pairs of matrices."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor

from rayvideo.errors import UserError
from rayvideo.models import layouts
from rayvideo.models.adapter import MORE, read_adapter
from rayvideo.models.base import ModelError, VideoModel
from rayvideo.models.lora import PREFIX, WEIGHTS
from rayvideo.storage import fetched, is_file, join
from rayvideo.weights import read_tensors

KINDS = {".lora_A.weight": "A", ".lora_down.weight": "A", ".lora_B.weight": "B", ".lora_up.weight": "B", ".alpha": "α"}
"""How keys of plain LoRA end, and what they hold."""
METADATA = "lora_adapter_metadata"
"""Where diffusers puts PEFT's configuration in a file's header, as JSON with the denoiser's name before each option."""


class Pair(NamedTuple):
    """What a file holds of a layer, in fp32: the layer's output gains scale·B·A·x."""

    a: Tensor
    """[rank, in]; of a convolution [rank, in, …kernel]"""
    b: Tensor
    """[out, rank]; of a convolution [out, rank, 1, …]"""
    scale: float


def weights_of(path: str) -> str:
    """The file of weights that a path or URI means: itself, or what PEFT calls it in a folder."""
    return path if path.partition("?")[0].endswith(".safetensors") else join(path, WEIGHTS)


def read(path: str, family: type[VideoModel]) -> dict[str, Pair]:
    """The pairs in a .safetensors file or in PEFT's folder, by the names that the layers have there.

    Names in a folder begin with `PREFIX`.

    Args:
        path: Or a URI.
        family: Of the model that they are for.

    Raises:
        ModelError: there is nothing, it can't be read, or it is not whole, finite and plain LoRA.
    """
    if not is_file(weights_of(path)):
        raise ModelError(f"{path}: no adapter here; a .safetensors file, or a folder with {WEIGHTS} is expected")
    with fetched(path) as here:
        try:
            if weights_of(path) == path:
                return _paired(read_tensors(here), _scales(here, family))
            adapter = read_adapter(here)
            tensors = {f"{PREFIX}{name}": tensor for name, tensor in adapter.matrices.items()}
            return _paired(tensors, {PREFIX: adapter.alpha / adapter.rank})
        except UserError as error:
            said = str(error).removeprefix(str(here)).removeprefix(":").lstrip().replace(str(here), path)
            raise ModelError(f"{path}: {said}") from error


def _scales(file: Path, family: type[VideoModel]) -> dict[str, float]:
    """Beginnings of names -> the scale that the file's header has for them."""
    scales = {}
    with safe_open(file, framework="np") as header:
        text = (header.metadata() or {}).get(METADATA)
    try:
        said = json.loads(text) if text else {}
        for prefix in (layouts.diffusers(family, ""), layouts.second(family, "")):
            if f"{prefix}r" in said:
                if more := [option for option in MORE if said.get(f"{prefix}{option}")]:
                    raise ModelError(
                        f"its header says {more[0]}, and only plain LoRA of one rank and scale can be used"
                    )
                scales[prefix] = said[f"{prefix}lora_alpha"] / said[f"{prefix}r"]
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{METADATA} in its header can't be read: {error!r}") from error
    return scales


def _paired(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Pair]:
    """The matrices of each layer with their scale: by its own alpha, by `scales`, or 1."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        ending = next((ending for ending in KINDS if key.endswith(ending)), None)
        if ending is None:
            raise ModelError(
                f"{key!r} is nothing of plain LoRA, whose keys end in {', '.join(KINDS)}; DoRA, LoHa, LoKr and changed "
                "biases can't be used"
            )
        values = tensor.float()
        if not values.isfinite().all():
            raise ModelError(f"{key!r} holds NaN or Inf")
        layers[key.removesuffix(ending)][KINDS[ending]] = values
    if not layers:
        raise ModelError("it holds no tensors")
    return {name: _pair(name, parts, scales) for name, parts in layers.items()}


def _pair(name: str, parts: Mapping[str, Tensor], scales: Mapping[str, float]) -> Pair:
    if missing := sorted({"A", "B"} - parts.keys()):
        raise ModelError(f"{name!r} has {', '.join(sorted(parts))}, but no matrix {' and no '.join(missing)}")
    a, b = parts["A"], parts["B"]
    if a.ndim < 2 or b.ndim < 2 or not len(a) == b.shape[1] > 0:
        raise ModelError(f"{name!r}: A {list(a.shape)} and B {list(b.shape)} are no pair of one rank")
    scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
    if "α" in parts:
        if parts["α"].numel() != 1:
            raise ModelError(f"{name!r}: its alpha {list(parts['α'].shape)} is no single number")
        scale = parts["α"].item() / len(a)
    if not scale or not math.isfinite(scale):
        raise ModelError(f"{name!r}: its scale alpha / rank is {scale}, which makes nothing of the matrices")
    return Pair(a, b, scale)
