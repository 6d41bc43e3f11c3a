"""The state of a worker's random number generators, as a file that `torch.load(weights_only=True)` reads.

Nothing in training draws from them, `seeding` has the numbers of its own; a user's judge or a library may.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_rng(path: Path) -> None:
    """Write the states of torch on CPU and GPUs, of numpy and of Python."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002 - the generator that libraries share
        "python": random.getstate(),
    }
    torch.save(state, path)


def load_rng(path: Path) -> None:
    """Continue with what `save_rng` wrote, on as many GPUs as there were then."""
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})  # noqa: NPY002
    random.setstate(state["python"])


def _plain(tree: Any) -> Any:
    """Numpy's state without numpy's types: its key is 624 numbers below 2**32."""
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return torch.from_numpy(tree.astype(np.int64)) if isinstance(tree, np.ndarray) else tree
