"""A judge that tests hold up from outside, to kill what is running at a known place."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from rayvideo.rewards import Reward, RewardError


class Gate(Reward):
    """Mean of squared pixels. Does not answer while `checkpoint`, a file, exists; beside it lies its process id."""

    def __init__(self, gate: Path, seconds: float) -> None:
        super().__init__()
        self._gate = gate
        self._seconds = seconds
        gate.with_suffix(".pid").write_text(str(os.getpid()))

    @classmethod
    def load(cls, checkpoint: str | None, seconds: float = 0.0, **options: Any) -> Self:
        if checkpoint is None:
            raise RewardError("Gate needs a checkpoint")
        return cls(Path(checkpoint), seconds)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        time.sleep(self._seconds)
        while self._gate.exists():
            time.sleep(0.05)
        return frames.square().flatten(1).mean(1)
