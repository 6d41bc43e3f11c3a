"""Where every random number of a run comes from: a pure function of the run's seed and a few names.

Noise belongs to a clip at a step, not to a process, so a run gives the same numbers on one worker or on ten.
"""

from __future__ import annotations

import hashlib
import json

import torch


def seed_for(seed: int, *keys: int | str) -> int:
    """Seed in [0, 2**63) for what `keys` name, e.g. `seed_for(0, "noise", step, position)`.

    The same on every machine and Python version; different keys, their order and their types give unrelated seeds.
    """
    digest = hashlib.blake2b(json.dumps([seed, *keys]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, *keys: int | str) -> torch.Generator:
    """CPU generator seeded by `seed_for`; noise drawn on the CPU is the same whatever the device."""
    return torch.Generator().manual_seed(seed_for(seed, *keys))
