"""Loads a part of a model, such as its VAE, from a subfolder of a pipeline folder or hub id.

With its weights (`load_weights`), or as shapes on the meta device, which cost no memory (`load_shapes`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import list_repo_files
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from rayvideo.models.base import ModelError
from rayvideo.weights import WeightsError, misfits, read_shapes

disable_progress_bar()  # one for each file that is read, in every process and in every log

FILE = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>\w+))?\.(safetensors|bin)")
INDEX = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)\.(safetensors|bin)\.index(\.(?P<variant>\w+))?\.json"
)
"""Whole files of weights, and lists of the files that weights are split into, as diffusers and transformers name them.
A variant, such as fp16, is another number format or training average of the same weights."""


def load_part(read: Callable[..., Any], path: str | Path, part: str, **options: Any) -> Any:
    """Let `read`, such as a class's `from_pretrained`, load the subfolder `part` of the model.

    Raises:
        ModelError: naming folder and part, in one line.
    """
    try:
        return read(path, subfolder=part, **options)
    except Exception as error:  # a damaged configuration may make the libraries raise anything
        said = " ".join(str(error).split())
        raise ModelError(f"{path}: {part!r} can't be loaded: {said}") from error


def load_weights(kind: Any, path: str | Path, part: str, **options: Any) -> Any:
    """A part's network with its weights. If there are no plain files of weights, but one variant of them, that is read.

    A tensor that the files lack is an error; the libraries would fill it with random numbers.
    """

    def load(variant: str | None) -> Any:
        return load_part(kind.from_pretrained, path, part, variant=variant, output_loading_info=True, **options)

    if Path(path).is_dir():
        module, report = load(variant_in(path, part, _names(Path(path, part))))
    else:
        try:
            module, report = load(None)
        except ModelError:  # only now is the hub asked for its list of files, since that is one more request
            variant = variant_in(path, part, _hub_names(path, part))
            if variant is None:
                raise
            module, report = load(variant)
    _refuse_absent(path, part, [*report["missing_keys"], *report["mismatched_keys"]])
    return module


def load_shapes(kind: Any, path: str | Path, part: str) -> Any:
    """A part's network on the meta device: no weights are read and no memory is taken.

    The headers of a folder's files are compared with it, as `load_weights` would compare the weights; of a model on the
    hub nothing but the configuration is fetched.
    """
    found = _headers(Path(path), part) if Path(path).is_dir() else None
    build = _diffusers_shapes if issubclass(kind, ModelMixin) else _transformers_shapes
    module, absent = load_part(build, path, part, kind=kind, found=found)
    _refuse_absent(path, part, absent)
    return module


def variant_in(path: str | Path, part: str, names: Iterable[str]) -> str | None:
    """The variant that weights have to be read from, by `names` of files: None if plain ones, or none, are there.

    Raises:
        ModelError: there are several variants, and no plain weights.
    """
    variants = {match["variant"] for name in names if (match := _weights(name))}
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        raise ModelError(
            f"{path}: {part!r} holds several variants of its weights, {', '.join(sorted(variants))}, and no plain "
            "ones; keep one of them in its folder"
        )
    return str(variants.pop())


def _weights(name: str) -> re.Match[str] | None:
    return FILE.fullmatch(name) or INDEX.fullmatch(name)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _hub_names(path: str | Path, part: str) -> list[str]:
    try:
        return [name.removeprefix(f"{part}/") for name in list_repo_files(str(path)) if name.startswith(f"{part}/")]
    except Exception:  # the network may fail in any way; then the caller raises the error that it had before
        return []


def _headers(model: Path, part: str) -> dict[str, Tensor] | None:
    """Names and shapes of a part's tensors, on the meta device; None where a file can't be looked into cheaply.

    Raises:
        ModelError: a file is missing or damaged.
    """
    found: dict[str, Tensor] = {}
    for file in _weight_files(model, part):
        try:
            if not file.is_file():
                raise WeightsError(f"{file} is not a file")
            shapes = read_shapes(file)
        except WeightsError as error:
            raise ModelError(f"{model}: {part!r} can't be loaded: {error}") from error
        if shapes is None:
            return None
        found |= shapes
    return found


def _weight_files(model: Path, part: str) -> list[Path]:
    """The files that the libraries read the part's weights from."""
    folder = model / part
    names = _names(folder)
    variant = variant_in(model, part, names)
    candidates = [name for name in names if (match := _weights(name)) and match["variant"] == variant]
    if not candidates:
        raise ModelError(
            f"{model}: {part!r} can't be loaded: {folder} holds no weights, such as "
            "diffusion_pytorch_model.safetensors or model.safetensors"
        )
    chosen = min(candidates, key=lambda name: (".bin" in name, name.endswith(".json")))
    if not chosen.endswith(".json"):
        return [folder / chosen]
    try:
        return sorted({folder / file for file in json.loads((folder / chosen).read_text())["weight_map"].values()})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / chosen} is no list of files of weights: {error!r}") from error


def _diffusers_shapes(
    path: str | Path, subfolder: str, kind: Any, found: dict[str, Tensor] | None
) -> tuple[Any, list[str]]:
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(path, subfolder=subfolder))
    if found is None:
        return module, []
    module._fix_state_dict_keys_on_load(found)  # files of former releases have other names; its loader does this too
    expected = module.state_dict()
    return module, [name for name in misfits(expected, found) if name in expected]


def _transformers_shapes(
    path: str | Path, subfolder: str, kind: Any, found: dict[str, Tensor] | None
) -> tuple[Any, list[str]]:
    config = kind.config_class.from_pretrained(path, subfolder=subfolder)
    if found is None:
        with torch.device("meta"):
            return kind(config), []
    options = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
    module, report = kind.from_pretrained(None, config=config, state_dict=found, **options)
    return module, [*report["missing_keys"], *report["mismatched_keys"]]


def _refuse_absent(path: str | Path, part: str, absent: list[Any]) -> None:
    if absent:
        raise ModelError(f"{path}: {part!r} lacks or misfits {len(absent)} tensors, such as {absent[0]}")


def load_network(path: str | Path, weights: bool, kind: Any, part: str, **options: Any) -> Any:
    """A network of class `kind` with its weights, loaded with these options; or without, as shapes and formats."""
    if weights:
        return load_weights(kind, path, part, **options)
    return _formatted(load_shapes(kind, path, part), options.get("torch_dtype", torch.float32))


def _formatted(network: Any, dtype: torch.dtype) -> Any:
    """A network on the meta device in the number formats that diffusers' loader would give its weights."""
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not any(part in kept for part in name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return network


def load_tokenizer(kind: Any, path: str | Path) -> Any:
    """The tokenizer, of a class of transformers', of a pipeline folder or hub id.

    Raises:
        ModelError: it can't be read, or has no words: transformers makes an empty one, and does not say so, if its file
            is missing.
    """
    try:
        tokenizer = load_part(kind.from_pretrained, path, "tokenizer")
    except ModelError as error:
        if "tiktoken" in str(error):  # transformers asks for the wrong package; this one is what it lacks
            raise ModelError(f"{error} To read spiece.model takes `pip install sentencepiece`") from error
        raise
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:  # special tokens and a space
        raise ModelError(f"{path}: 'tokenizer' holds no vocabulary; it needs tokenizer.json or spiece.model")
    return tokenizer
