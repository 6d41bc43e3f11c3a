"""The record of every start of a run's workers, from which step and why: attempts.jsonl in the run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from rayvideo.storage import is_file, join, read_bytes, read_lines, write_bytes, write_lines

ATTEMPTS = "attempts.jsonl"
LOST = "lost.json"  # why workers were lost, written by Ray Train's controller and read when the next ones start


@dataclass(frozen=True)
class Attempt:
    """One start of a run's workers."""

    number: int
    from_step: int
    """Optimizer steps that were done already."""
    workers: int
    why: str
    refused: list[str]
    """Newer checkpoints that could not be used, with the reason."""
    call: str
    """Id of the call of `finetune`. A call has several attempts if workers were lost or their number changed."""
    at: str
    """ISO 8601, UTC."""

    def __str__(self) -> str:
        refused = "".join(f"; refused {reason}" for reason in self.refused)
        return f"from step {self.from_step} on {self.workers} workers: {self.why}{refused}"


def attempts_of(run_folder: str) -> list[Attempt]:
    """All attempts so far, the first first."""
    return [Attempt(**line) for line in read_lines(join(run_folder, ATTEMPTS))]


def note_lost(run_folder: str, why: str) -> None:
    """Write down why the workers of the newest attempt were lost, for the attempt that comes next."""
    note = {"attempt": len(attempts_of(run_folder)), "why": why}
    write_bytes(join(run_folder, LOST), json.dumps(note).encode())


def begin_attempt(
    run_folder: str, call_id: str, start_reason: str, from_step: int, workers: int, refused: list[str]
) -> Attempt:
    """Add a start of workers to the record, and return it.

    Args:
        call_id: Tells one call of `finetune` from another.
        start_reason: Why `finetune` was called; the reason of the first attempt of that call.
    """
    earlier = attempts_of(run_folder)
    why = start_reason
    if any(attempt.call == call_id for attempt in earlier):
        why = _lost(run_folder, earlier[-1]) or f"{earlier[-1].workers} workers became {workers}"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    attempt = Attempt(len(earlier) + 1, from_step, workers, why, refused, call_id, now)
    write_lines(join(run_folder, ATTEMPTS), map(asdict, (*earlier, attempt)))
    return attempt


def _lost(run_folder: str, attempt: Attempt) -> str | None:
    """Why the workers of an attempt were lost; None if others were started without that."""
    path = join(run_folder, LOST)
    note = json.loads(read_bytes(path)) if is_file(path) else {}
    return note["why"] if note.get("attempt") == attempt.number else None
