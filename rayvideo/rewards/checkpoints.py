"""Files of tensors, read without running code from them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from rayvideo.rewards.base import RewardError
from rayvideo.weights import WeightsError, read_file

BLOCK = 2**24


def check_file(checkpoint: str | Path | None, kind: str, example: str) -> Path:
    """The file of weights that a judge of this `kind` needs; refused if it is not set or not there."""
    if checkpoint is None:
        raise RewardError(f"checkpoint is not set; {kind} needs one: a file such as {example}")
    if not Path(checkpoint).is_file():
        raise RewardError(f"checkpoint {str(checkpoint)!r} is not a file; {kind} needs one such as {example}")
    return Path(checkpoint)


def read_checkpoint(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU; a file that needs code to be run is refused.

    Raises:
        RewardError: naming the file and what is wrong with it.
    """
    try:
        return read_file(path)
    except WeightsError as error:
        raise RewardError(f"checkpoint {error}") from error


def is_state_dict(content: Any) -> bool:
    """Whether this is a mapping of names to tensors, with one at least."""
    return isinstance(content, dict) and bool(content) and all(isinstance(x, Tensor) for x in content.values())


def found(content: Any) -> str:
    """A few words, for an error, on what a file holds instead of what it should."""
    return str(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; the hub shows it on a file's page."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
