"""The driver's view of a training that runs elsewhere: a progress bar fed by files of the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rayvideo.data.storage import is_uri, join, locate
from rayvideo.evaluation.folder import is_file
from rayvideo.progress import progress
from rayvideo.training.attempts import attempts_of

EVERY_S = 0.5
EVERY_REMOTE_S = 5.0  # a bucket's files change at checkpoints, and each look is a request
TAIL_BYTES = 65536  # more than a line


@contextmanager
def following(run_folder: str, steps: int, judges: Sequence[str], call: str) -> Iterator[None]:
    """Show a bar for as long as the block runs: how many of `steps` are done, with the judges' raw scores.

    Says so when the workers of this `call` of finetune were started again, or passed over a checkpoint.
    """
    done = Event()
    thread = Thread(target=_follow, args=(run_folder, steps, judges, call, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(run_folder: str, steps: int, judges: Sequence[str], call: str, done: Event) -> None:
    with progress("fine-tuning", steps, unit="step") as bar:
        finished, told = False, 0
        pause = EVERY_REMOTE_S if is_uri(run_folder) else EVERY_S
        while not finished:
            finished = done.wait(pause)  # the last look comes after the last step
            attempts = [attempt for attempt in attempts_of(run_folder) if attempt.call == call]
            for number, attempt in enumerate(attempts[told:], told):
                if number or attempt.refused:
                    bar.write(f"training goes on {attempt}")
            told = len(attempts)
            newest = last_line(join(run_folder, "metrics.jsonl"))
            if newest is not None:
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
