from __future__ import annotations

import json
from pathlib import Path

import torch

from rayvideo.training.following import last_line
from rayvideo.training.meters import Clock, Journal


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_journal_holds_each_step_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    assert last_line(str(path)) is None
    first = Journal(str(path), start=0)
    assert last_line(str(path)) is None
    for step in (1, 2, 3):
        first.add(step, {"reward": step / 10})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "reward": 0.2}

    again = Journal(str(path), start=2)  # a worker was lost after the checkpoint of step 2
    assert steps_of(path) == [1, 2]
    again.add(3, {"reward": 0.5})
    assert steps_of(path) == [1, 2, 3]
    assert last_line(str(path)) == {"step": 3, "reward": 0.5}

    Journal(str(path), start=0)
    assert steps_of(path) == []


def test_a_half_written_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert last_line(str(path)) == {"step": 1}


def test_a_long_journal_is_read_from_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "pad": "x" * 500}) + "\n" for i in range(1000)))
    newest = last_line(str(path))
    assert newest is not None
    assert newest["step"] == 999


def test_bucket_journals_are_written_by_save(tmp_path):
    uri = (tmp_path / "metrics.jsonl").as_uri()
    journal = Journal(uri, start=0)
    journal.add(1, {"reward": 0.1})
    assert steps_of(tmp_path / "metrics.jsonl") == []
    journal.save()
    assert steps_of(tmp_path / "metrics.jsonl") == [1]


def test_the_clock_adds_up_by_phase():
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock("outer"), clock("inner"):
            pass
    assert set(clock.seconds) == {"outer", "inner"}
    assert clock.seconds["outer"] > clock.seconds["inner"] > 0
