"""Processes that train together, as Ray Train's workers do, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

PATIENCE_S = 240
"""Seconds, many times what a world takes, after which its workers are ended and it is begun again."""
TRIES = 3
"""Of a world. Seen once in some dozens of runs: with four workers on two cores two of gloo's threads span in a gather
of ZeRO-3's, each on a core of its own, and nothing else of these processes ever ran again, watchdogs included."""


def run(work: Callable[..., None], world: int, new_place: Callable[[], Path], *args: Any) -> Path:
    """Let so many workers call work(place, *args) in a process group; `place` is a folder that they share."""
    # New interpreters: a fork takes over locks, but not the threads (jemalloc's, OpenMP's) that would release them.
    context = multiprocessing.get_context("spawn")
    for _ in range(TRIES):
        place = new_place()
        workers = [context.Process(target=_join, args=(work, rank, world, place, *args)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        hung = [worker.is_alive() for worker in workers]
        for worker in workers:
            worker.kill()
            worker.join()
        if not any(hung):
            break
    assert [worker.exitcode for worker in workers] == [0] * world
    return place


def _join(work: Callable[..., None], rank: int, world: int, place: Path, *args: Any) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    work(place, *args)
    dist.destroy_process_group()
    os._exit(0)  # libraries have threads that a process may wait for at its end, when nothing watches it any more
