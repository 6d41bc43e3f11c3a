"""Files of tensors: how they are read, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from rayvideo.errors import UserError

ZIP, PICKLE = b"PK", b"\x80"
"""First bytes of what torch.save writes: its format since PyTorch 1.6, which can be mapped, and the one before."""
NAMED = 5
"""Tensors that a message names before it only counts them."""


class WeightsError(UserError, RuntimeError):
    """A file of weights that is missing, damaged, of another kind, or that would have to run code to be read."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of PyTorch, bare or as {"state_dict": …, …}, or in a .safetensors file, on the CPU.

    Tensors are mapped from the file where it allows that. A file that needs code to be run is refused.

    Raises:
        WeightsError: naming the file, what is wrong with it, and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    content = read_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = sorted(map(str, content))[:NAMED] if isinstance(content, dict) else type(content).__name__
        raise WeightsError(
            f"{path} holds no state dict: tensors by name, or {{'state_dict': …}}, are expected, but it holds {found}"
        )
    return dict(content)


def read_file(path: str | Path) -> Any:
    """What torch.save or safetensors wrote, on the CPU.

    Raises:
        WeightsError: naming the file, what is wrong with it, and what to do.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            magic = file.read(2)
        if magic != ZIP and not magic.startswith(PICKLE):
            raise UnpicklingError("it begins like neither a zip file nor a pickle")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=magic == ZIP)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path} is no file of weights, is damaged, or holds more than tensors; nothing of it was run. If you "
            f"trust it, save its state dict as .safetensors elsewhere and give that. {error}"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise WeightsError(f"{path} can't be read; is it complete? Copy or download it again. {error!r}") from error


def read_shapes(path: str | Path) -> dict[str, Tensor] | None:
    """What `read_file` would give, as tensors of the meta device: a file's header is read, its weights are not.

    None for a pickle from before PyTorch 1.6, which can't be looked into without reading all of it.

    Raises:
        WeightsError: naming a file that is damaged, cut off or of another kind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        with path.open("rb") as file:
            old = file.read(1) == PICKLE
        return None if old else {name: tensor.to("meta") for name, tensor in read_tensors(path).items()}
    try:
        with safe_open(path, framework="np") as header:  # torch would want memory for as much as it maps
            return {name: torch.empty(header.get_slice(name).get_shape(), device="meta") for name in header.keys()}  # noqa: SIM118 - it is no dict
    except Exception as error:  # of an untyped library
        raise WeightsError(f"{path} can't be read; is it complete? Copy or download it again. {error!r}") from error


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, unknown or of another shape in `found`, sorted."""
    shared = expected.keys() & found.keys()
    return sorted(
        [*(expected.keys() ^ found.keys()), *(name for name in shared if expected[name].shape != found[name].shape)]
    )


def require_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Refuse `found` if it is not, name by name and shape by shape, what is expected.

    Raises:
        WeightsError: "`what`: …", with the count of each kind of misfit and the first names.
    """
    wrong = misfits(expected, found)
    kinds = {
        "missing": [name for name in wrong if name not in found],
        "unknown": [name for name in wrong if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} in place of {list(expected[name].shape)}"
            for name in wrong
            if name in found and name in expected
        ],
    }
    if wrong:
        said = (
            f"{len(names)} {kind} ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
            for kind, names in kinds.items()
            if names
        )
        raise WeightsError(f"{what}: of {len(expected)} tensors, {'; '.join(said)}")
