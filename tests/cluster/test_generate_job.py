"""The job that makes clips of a list: killed, resumed, on one worker or two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
import yaml

from rayvideo.evaluation.produce import order, produce
from rayvideo.evaluation.writers import ClipWriter
from rayvideo.recipe import load_recipe
from rayvideo.settling import settle

ROOT = Path(__file__).parents[2]
CAPTIONS = [f"{colour} cat {n} 🐈/.." for n in range(12) for colour in ("red", "blue")]


def finished(out: Path) -> list[str]:
    """Files that the index calls done."""
    file = out / "index.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["file"] for row in rows if row["status"] == "done"]


@contextmanager
def one_thread() -> Iterator[None]:
    """As Ray has it in an actor of at most one CPU: sums over other numbers of threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("ray_cluster")
def test_killed_and_resumed_it_makes_the_clips_of_one_process(
    tiny_pipeline: Path, adapter: Path, tmp_path: Path
) -> None:
    recipe_file, captions, out = tmp_path / "recipe.yaml", tmp_path / "list.txt", tmp_path / "out"
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
        "reward": {"judges": [{"name": "judge"}]},
        "evaluation": {"steps": 2, "batch_size": 2, "workers": 2, "cpus_per_worker": 0.5},
    }
    recipe_file.write_text(yaml.safe_dump(tree))
    captions.write_text("\r\n".join(["no separators", *(f"{n}|||{text}|||16" for n, text in enumerate(CAPTIONS))]))
    command = [sys.executable, "jobs/generate.py", "--recipe", str(recipe_file), "--captions", str(captions)]
    command += ["--adapter", str(adapter), "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}

    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as job:
        while not finished(out) and job.poll() is None:
            time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
    before = finished(out)
    assert 0 < len(before) < len(CAPTIONS)
    made = {file: (out / file).stat().st_mtime_ns for file in before}

    wanted = order(settle(load_recipe(recipe_file), "evaluation"), str(captions), str(adapter))
    summary = produce(wanted, str(out))
    assert {file: (out / file).stat().st_mtime_ns for file in before} == made
    assert (summary["clips"], summary["new_clips"]) == (24, 24 - len(before))
    assert (summary["rejected"], summary["repeated"], summary["failed"]) == (1, 0, 0)
    assert not [file.name for file in (out / "clips").iterdir() if file.name.startswith("_")]

    assert sorted(finished(out)) == sorted(str(row.file) for row in wanted.rows)
    writer = ClipWriter(wanted.recipe, wanted.adapter, wanted.merge, str(tmp_path / "alone"))
    with one_thread():
        for pair in (wanted.rows[::23], wanted.rows[5:6]):  # other company than in the job
            embeddings = writer.embed([wanted.recipe.model.negative_prompt, *(row.caption for row in pair)])
            for row in writer.write(pair, *embeddings):
                assert (tmp_path / "alone" / str(row.file)).read_bytes() == (out / str(row.file)).read_bytes()
