"""A run folder in a bucket: files that are written whole, and checkpoints that are as safe as on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rayvideo.models import ModelError, export, foreign
from rayvideo.models.modelscope import ModelScope
from rayvideo.runs import checkpoints
from rayvideo.runs.checkpoints import Part, newest_good, upload
from rayvideo.runs.folder import copy_adapter, write_summary
from rayvideo.runs.journal import Best, Journal
from rayvideo.storage import (
    fetched,
    is_file,
    join,
    locate,
    parent,
    read_bytes,
    read_lines,
    read_summary,
    replacing,
    write_bytes,
)


def test_a_uri_keeps_its_query():
    folder = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9000"
    file = "s3://bucket/runs/first/adapter?scheme=http&endpoint_override=127.0.0.1:9000"
    assert join(join(folder, "first"), "adapter") == file
    assert parent(parent(file)) == folder
    assert join("s3://bucket/runs/", "first") == "s3://bucket/runs/first"


def write_and_fail(path: str) -> None:
    with replacing(path) as (filesystem, temporary), filesystem.open_output_stream(temporary) as file:
        file.write(b"ne")
        raise ZeroDivisionError


def test_files_are_whole_or_not_there(store):
    write_bytes(store("files/a.txt"), b"old")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store("files/a.txt"))
    assert read_bytes(store("files/a.txt")) == b"old"
    write_bytes(store("files/a.txt"), b"new")
    assert read_bytes(store("files/a.txt")) == b"new"
    assert not is_file(store("files/b.txt"))


def test_metrics_are_written_whole_and_roll_back(store):
    path = store("run/metrics.jsonl")
    journal = Journal(path, 0)
    journal.add(1, {"reward": 1.0})
    assert read_lines(path) == []  # objects can't grow
    journal.add(2, {"reward": 3.0})
    journal.save()
    assert read_lines(path)[-1] == {"step": 2, "reward": 3.0}
    assert journal.update_best(2) == Best(2, 2.0)
    Journal(path, 1)
    assert read_lines(path) == [{"step": 1, "reward": 1.0}]


def test_summaries_keep_what_other_jobs_wrote(store):
    write_summary(store("run"), {"sets": 1, "finished": False})
    write_summary(store("run"), {"finished": True})
    assert read_summary(store("run")) == {"sets": 1, "finished": True}


def save(run_folder: str, local: Path, step: int, *, run: str = "abc", workers: int = 1) -> str:
    source = local / str(step)
    (source / "adapter").mkdir(parents=True)
    (source / "adapter" / "weights").write_bytes(bytes(1000))
    (source / "state.json").write_text(json.dumps({"step": step}))
    folder = join(run_folder, f"checkpoints/{checkpoints.name_of(step)}")
    upload(source, folder, Part(run, "one", step, 0, workers))
    return folder


def test_the_newest_good_checkpoint_is_found_and_fetched(store, tmp_path):
    run_folder = store("damaged")
    for step in (2, 4, 6, 8, 10):
        folder = save(run_folder, tmp_path, step, run="xyz" if step == 8 else "abc", workers=2 if step == 10 else 1)
        if step == 6:  # garbled
            write_bytes(join(folder, "adapter/weights"), bytes(500) + b"\1" + bytes(499))
    good, refused = newest_good(run_folder, "abc")
    assert good is not None
    assert good.step == 4
    assert [(one.name, one.unfinished) for one in refused] == [
        ("step-000010", True), ("step-000008", False), ("step-000006", False),
    ]  # fmt: skip
    with fetched(good.folder) as files:
        assert copy_adapter(files / "adapter", run_folder) == join(run_folder, "adapter")
    assert read_bytes(join(run_folder, "adapter/weights")) == bytes(1000)

    checkpoints.put_away(run_folder, refused)
    assert checkpoints.steps_in(run_folder) == [2, 4]
    assert is_file(join(run_folder, "checkpoints/refused/step-000006/adapter/weights"))
    checkpoints.prune(run_folder, 4, keep=1)
    assert checkpoints.steps_in(run_folder) == [4]


def test_an_adapter_to_begin_from_may_lie_in_a_bucket(store, adapter, tmp_path):
    files = export.export_kohya(adapter, tmp_path / "lora.safetensors", ModelScope)
    copy_adapter(adapter, store("first"))
    write_bytes(store("lora.safetensors"), Path(files[0]).read_bytes())
    folder, file = (foreign.read(store(path), ModelScope) for path in ("first/adapter", "lora.safetensors"))
    own = foreign.read(str(adapter), ModelScope)
    assert folder.keys() == own.keys()
    assert len(file) == len(own)
    assert all(torch.equal(folder[name].b, pair.b) for name, pair in own.items())
    with pytest.raises(ModelError, match=r"^s3://bucket/none\?.*: no adapter here"):
        foreign.read(store("none"), ModelScope)
    write_bytes(join(store("first/adapter"), "adapter_config.json"), b"{")
    with pytest.raises(ModelError, match=r"^s3://bucket/first/adapter\?\S+: no adapter that can be read"):
        foreign.read(store("first/adapter"), ModelScope)


def test_ray_trains_list_can_be_forgotten(store):
    checkpoints.forget_reports(store("none"))
    write_bytes(join(store("one"), checkpoints.SNAPSHOT), b"{")
    checkpoints.forget_reports(store("one"))
    filesystem, inner = locate(join(store("one"), checkpoints.SNAPSHOT))
    assert not filesystem.get_file_info(inner).is_file
