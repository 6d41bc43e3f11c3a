"""A checkpoint is whole or not seen: what is cut off, garbled, incomplete or of another run is refused by name."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayvideo.runs import checkpoints
from rayvideo.runs.attempts import attempts_of, begin_attempt, note_lost
from rayvideo.runs.checkpoints import CheckpointError, Part, UnfinishedError, newest_good, upload, verify
from rayvideo.runs.journal import Best, Journal
from rayvideo.storage import fetched
from rayvideo.training.rng import load_rng, save_rng

RUN = "abc"
SHARD = "ds/optimizer-1.pt"


def save(run_folder: Path, step: int, *, ranks: tuple[int, ...] = (0, 1), **changes: Any) -> Path:
    """Upload the parts that two workers write, or some of them."""
    folder = run_folder / "checkpoints" / f"step-{step:06d}"
    for rank in ranks:
        source = run_folder / "local" / str(rank)
        (source / "ds").mkdir(parents=True)
        (source / f"ds/optimizer-{rank}.pt").write_bytes(random.Random(step + rank).randbytes(1000))
        if rank == 0:
            (source / "state.json").write_text(json.dumps({"step": step, "workers": 2, "global_batch": 8}))
        part = Part(**{"run": RUN, "attempt": "one", "step": step, "rank": rank, "workers": 2, **changes})
        upload(source, str(folder), part)
        shutil.rmtree(source)
    return folder


def test_a_whole_checkpoint_is_good(tmp_path):
    good = verify(str(save(tmp_path, 4)), RUN)
    assert good.step == 4
    assert good.state["global_batch"] == 8
    with fetched(good.folder) as files:
        assert len((files / SHARD).read_bytes()) == 1000


def cut(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(999)


def flip(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[500] ^= 1
    (folder / SHARD).write_bytes(content)


def lose(folder: Path) -> None:
    (folder / SHARD).unlink()


def lose_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def garble_index(folder: Path) -> None:
    (folder / "index-00001.json").write_text("[]")


def swap(folder: Path) -> None:
    """The folder of another step."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000002"), folder)


def foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    save(folder.parents[1], 4, run="xyz")


def mix(folder: Path) -> None:
    """Worker 1's part of another attempt."""
    save(folder.parents[1], 4, ranks=(1,), attempt="two")


DAMAGES = {
    cut: "step-000004: ds/optimizer-1.pt has 999 bytes, not 1000",
    flip: "step-000004: ds/optimizer-1.pt is not what was written: other bytes of the same number",
    lose: "step-000004: ds/optimizer-1.pt is missing",
    lose_state: "step-000004: state.json is missing",
    garble_index: "step-000004: index-00001.json can't be read: ",
    swap: "step-000004: it holds step 2",
    foreign: "step-000004: it belongs to MLflow run xyz, not to abc",
    mix: "step-000004: its parts were written by different attempts",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(tmp_path, damage):
    save(tmp_path, 2)
    damage(save(tmp_path, 4))
    good, refused = newest_good(str(tmp_path), RUN)
    assert good is not None
    assert good.step == 2
    assert [one.name for one in refused] == ["step-000004"]
    assert refused[0].why.startswith(DAMAGES[damage])
    assert not refused[0].unfinished

    checkpoints.put_away(str(tmp_path), refused)
    assert checkpoints.steps_in(str(tmp_path)) == [2]
    assert (tmp_path / "checkpoints/refused/step-000004/ds/optimizer-0.pt").is_file()
    assert newest_good(str(tmp_path), RUN) == (good, [])


@pytest.mark.parametrize("ranks", [(), (0,), (1,)])
def test_what_not_all_workers_finished_is_not_seen(tmp_path, ranks):
    good = verify(str(save(tmp_path, 2)), RUN)
    folder = save(tmp_path, 4, ranks=ranks)
    (folder / "ds").mkdir(parents=True, exist_ok=True)
    (folder / "ds/optimizer-7.pt").write_bytes(b"half")
    with pytest.raises(UnfinishedError, match="step-000004: "):
        verify(str(folder), RUN)
    found, refused = newest_good(str(tmp_path), RUN)
    assert (found, [one.unfinished for one in refused]) == (good, [True])
    checkpoints.put_away(str(tmp_path), refused)
    assert not folder.exists()
    assert not (tmp_path / "checkpoints/refused").exists()


def test_a_run_starts_at_the_beginning_only_if_nothing_is_lost(tmp_path):
    assert newest_good(str(tmp_path), RUN) == (None, [])
    folder = save(tmp_path, 2, ranks=(0,))
    assert newest_good(str(tmp_path), RUN)[0] is None
    save(tmp_path, 2, ranks=(1,))
    cut(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* step-000002: ds/optimizer-1.pt has .* Put a good"):
        newest_good(str(tmp_path), RUN)


def test_putting_away_can_be_interrupted(tmp_path, monkeypatch):
    """A process that dies in between leaves nothing that counts as a checkpoint."""
    save(tmp_path, 2)
    flip(save(tmp_path, 4))
    _, refused = newest_good(str(tmp_path), RUN)
    monkeypatch.setattr(checkpoints, "_delete", lambda *_: None)
    monkeypatch.setattr(checkpoints, "_files", lambda *_: [str(tmp_path / "checkpoints/step-000004/index-00000.json")])
    checkpoints.put_away(str(tmp_path), refused)
    monkeypatch.undo()
    _, refused = newest_good(str(tmp_path), RUN)
    assert [one.unfinished for one in refused] == [True]


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    save(tmp_path, 12, ranks=(0,))  # is being written
    checkpoints.prune(str(tmp_path), 10, keep=2, spared=(4, None))
    assert checkpoints.steps_in(str(tmp_path)) == [4, 8, 10, 12]
    checkpoints.prune(str(tmp_path), 10, keep=1)
    assert checkpoints.steps_in(str(tmp_path)) == [10, 12]
    checkpoints.prune(str(tmp_path), 10, keep=3)
    assert checkpoints.steps_in(str(tmp_path)) == [10, 12]


def test_random_numbers_go_on(tmp_path):
    def draw() -> tuple[float, ...]:
        return torch.rand(()).item(), float(np.random.normal()), random.random()  # noqa: NPY002

    draw()  # numpy has a second normal number in store now
    save_rng(tmp_path / "rng.pt")
    wanted = [draw(), draw()]
    load_rng(tmp_path / "rng.pt")
    assert [draw(), draw()] == wanted


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def test_files_that_would_run_code_are_refused(tmp_path):
    from rayvideo.training.ray_train.saver import refuse_code  # imports DeepSpeed, which takes seconds

    (tmp_path / "ds").mkdir()
    torch.save({"step": 1, "weight": torch.ones(2)}, tmp_path / "ds/optimizer.pt")
    save_rng(tmp_path / "rng-00000.pt")
    refuse_code(tmp_path, "step-000001")
    torch.save({"step": Code()}, tmp_path / "ds/optimizer.pt")
    with pytest.raises(
        CheckpointError, match=r"step-000001: ds/optimizer.pt holds objects .* may run code: \['posix.system'\]"
    ):
        refuse_code(tmp_path, "step-000001")


def test_attempts_say_why(tmp_path):
    folder = str(tmp_path)
    begin_attempt(folder, "one", "started", 0, 2, [])
    note_lost(folder, "worker 1 was lost")
    begin_attempt(folder, "one", "started", 4, 2, ["step-000006: cut"])
    begin_attempt(folder, "one", "started", 4, 1, [])
    begin_attempt(folder, "two", "resumed", 8, 1, [])
    assert [attempt.number for attempt in attempts_of(folder)] == [1, 2, 3, 4]
    assert [str(attempt) for attempt in attempts_of(folder)] == [
        "from step 0 on 2 workers: started",
        "from step 4 on 2 workers: worker 1 was lost; refused step-000006: cut",
        "from step 4 on 1 workers: 2 workers became 1",
        "from step 8 on 1 workers: resumed",
    ]


def test_the_journal_rolls_back_and_survives_a_torn_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(str(path), 0)
    for step, reward in enumerate([1.0, 3.0, 2.0, 1.0, 9.0], 1):
        journal.add(step, {"reward": reward})
        if step == 2:
            assert journal.update_best(step) == Best(2, 2.0)
    assert journal.update_best(5) == Best(5, 4.0)
    with path.open("a") as file:
        file.write('{"step": 6, "rew')
    journal = Journal(str(path), 4, Best(2, 2.0))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert "line 6 is no JSON" in caplog.text
    journal.add(5, {"reward": 1.0})
    assert journal.update_best(5) == Best(2, 2.0)
    Journal(str(path), 7)
    assert "2 of the first 7 steps are missing" in caplog.text
