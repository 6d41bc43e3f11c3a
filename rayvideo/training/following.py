"""The driver's view of a training that runs elsewhere: a progress bar fed by the run's metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rayvideo.data.storage import locate
from rayvideo.evaluation.folder import is_file
from rayvideo.progress import progress

EVERY_S = 0.5
TAIL_BYTES = 65536  # more than a line


@contextmanager
def following(metrics: str, steps: int, judges: Sequence[str]) -> Iterator[None]:
    """Show a bar for as long as the block runs: how many of `steps` are done, with the judges' raw scores."""
    done = Event()
    thread = Thread(target=_follow, args=(metrics, steps, judges, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(metrics: str, steps: int, judges: Sequence[str], done: Event) -> None:
    with progress("fine-tuning", steps, unit="step") as bar:
        finished = False
        while not finished:
            finished = done.wait(EVERY_S)  # the last look comes after the last step
            newest = last_line(metrics)
            if newest is not None:
                if newest["step"] < bar.n:
                    bar.write(f"a worker was lost after step {bar.n}; training goes on from step {newest['step']}")
                bar.set_postfix({judge: f"{newest[f'score/{judge}']:.4f}" for judge in judges}, refresh=False)
                bar.update(newest["step"] - bar.n)


def last_line(metrics: str) -> dict[str, Any] | None:
    """The newest whole line of metrics.jsonl; None if there is none yet."""
    if not is_file(metrics):
        return None
    filesystem, inner = locate(metrics)
    with filesystem.open_input_file(inner) as file:
        file.seek(max(0, file.size() - TAIL_BYTES))
        lines = file.read().decode().split("\n")[:-1]  # the last one may still be written
    return json.loads(lines[-1]) if lines else None
