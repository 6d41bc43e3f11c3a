from __future__ import annotations

import json
from pathlib import Path

from rayvideo.runs import journal as journals
from rayvideo.runs.journal import Journal


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_journal_holds_each_step_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    first = Journal(str(path), start=0)
    assert steps_of(path) == []
    for step in (1, 2, 3):
        first.add(step, {"reward": step / 10})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "reward": 0.2}

    again = Journal(str(path), start=2)  # a worker was lost after the checkpoint of step 2
    assert steps_of(path) == [1, 2]
    again.add(3, {"reward": 0.5})
    assert steps_of(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 3, "reward": 0.5}

    Journal(str(path), start=0)
    assert steps_of(path) == []


def test_tail_follows_a_local_journal_through_checkpoints_and_restarts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(str(path), start=0)
    with path.open() as reader:
        for step in (1, 2, 3):
            journal.add(step, {"reward": 0.1})
            assert json.loads(reader.readline())["step"] == step
            journal.save()
        again = Journal(str(path), start=3)
        again.add(4, {"reward": 0.1})
        assert json.loads(reader.readline())["step"] == 4


def test_bucket_journals_are_written_at_an_interval_and_by_save(tmp_path, monkeypatch):
    uri = (tmp_path / "metrics.jsonl").as_uri()
    journal = Journal(uri, start=0)
    journal.add(1, {"reward": 0.1})
    assert steps_of(tmp_path / "metrics.jsonl") == []
    journal.save()
    assert steps_of(tmp_path / "metrics.jsonl") == [1]
    monkeypatch.setattr(journals, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(journals, "SAVE_SHARE", 1e9)
    journal.save()
    journal.add(2, {"reward": 0.1})
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2]
