"""Files of judges' weights: found, read, told apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from rayvideo.rewards.base import RewardError
from rayvideo.weights import WeightsError, read_tensors

BLOCK = 2**24


def check_file(checkpoint: str | Path | None, kind: str, example: str) -> Path:
    """The file of weights that a judge of this `kind` needs; refused if it is not set or not there."""
    if checkpoint is None:
        raise RewardError(f"checkpoint is not set; {kind} needs one: a file such as {example}")
    if not Path(checkpoint).is_file():
        raise RewardError(f"checkpoint {str(checkpoint)!r} is not a file; {kind} needs one such as {example}")
    return Path(checkpoint)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a judge's file, as `rayvideo.weights.read_tensors` reads it.

    Raises:
        RewardError: naming the file and what is wrong with it.
    """
    try:
        return read_tensors(path)
    except WeightsError as error:
        raise RewardError(f"checkpoint {error}") from error


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; the hub shows it on a file's page."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
