"""A run that loses a judge, a worker, its driver with the whole cluster, and a checkpoint ends as if nothing was."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.attempts import attempts_of
from rayvideo.runs.checkpoints import name_of, steps_in
from rayvideo.runs.folder import folder_of
from rayvideo.storage import fetched, is_file, join, read_bytes, read_lines, read_summary, write_bytes
from rayvideo.training.launch import finetune

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
STEPS = 6
PATIENCE_S = 600  # a laden machine is slow to start Ray


class Killed(NamedTuple):
    """What is left of a run that went through everything, and of one that was left alone."""

    recipe: Recipe
    folder: str
    undisturbed: str
    """Folder of the other run."""
    database: str
    survivors: list[str]
    """Processes of the first driver's cluster that outlived it."""


def recipe_for(pipeline: Path, clips: Path, gate: Path, name: str, storage: str, database: str) -> Recipe:
    judge = {
        "name": "gate",
        "type": "tests.cluster.gates:Gate",
        "checkpoint": str(gate),
        "options": {"seconds": 0.2},
        "timeout_s": 3600,
    }
    return parse_recipe(
        {
            "model": {"path": str(pipeline)},
            "data": {"manifest": str(clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [judge], "segments": 2},
            "training": {
                "steps": STEPS, "workers": 2, "batch_size": 1, "accumulation": 2, "lr": 1e-3, "warmup_steps": 2,
                "precision": "fp32", "zero_stage": 2, "checkpoint_every": 2, "keep_checkpoints": 2,
                "keep_best": "reward",
            },
            "tracking": {"run_name": name, "uri": database},
            "storage": storage,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(tiny_pipeline, tiny_clips, tmp_path_factory, store, ray_cluster) -> Killed:
    """A run in a bucket, started by a driver with a Ray of its own, that is hurt in every way and resumed here."""
    here = tmp_path_factory.mktemp("killed")
    database = f"sqlite:///{here}/mlflow.db"
    gate, never = here / "gate", here / "never"
    undisturbed = recipe_for(tiny_pipeline, tiny_clips, never, "undisturbed", str(here / "runs"), database)
    recipe = recipe_for(tiny_pipeline, tiny_clips, gate, "killed", store("runs"), database)
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    folder = folder_of(recipe)
    gate.touch()
    with (here / "log.txt").open("w") as log:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        driver = subprocess.Popen(
            [sys.executable, "jobs/finetune.py", "--recipe", str(here / "recipe.yaml")],
            cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        finetune(undisturbed)  # meanwhile the other run gets as far as its first judge

        def wait_for(what: Callable[[], Any]) -> Any:
            until = time.monotonic() + PATIENCE_S
            while not (found := what()):
                assert driver.poll() is None, (here / "log.txt").read_text()
                assert time.monotonic() < until, (here / "log.txt").read_text()
                time.sleep(0.05)
            return found

        judge = int(wait_for(gate.with_suffix(".pid").exists) and gate.with_suffix(".pid").read_text())
        wait_for(lambda: attempts_of(folder))
        os.kill(judge, signal.SIGKILL)
        gate.unlink()
        wait_for(lambda: is_whole(folder, 2))
        gate.touch()
        workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "TrainWorker" in title(p)]
        assert len(workers) == 2
        workers[1].kill()
        wait_for(lambda: len(attempts_of(folder)) == 2)
        gate.unlink()
        wait_for(lambda: is_whole(folder, 4))
        gate.touch()
        everybody = psutil.Process(driver.pid).children(recursive=True)
        assert any("raylet" in title(process) for process in everybody)
    finally:
        driver.kill()
        driver.wait()
    titles = {process.pid: title(process).strip() for process in everybody}
    _, survivors = psutil.wait_procs(everybody, timeout=60)
    gate.unlink()
    garble(join(folder, "checkpoints/step-000004/adapter/adapter_model.safetensors"))
    write_bytes(join(folder, "summary.json"), b'{"finished": fal')
    finetune(recipe, resume=True)
    return Killed(recipe, folder, folder_of(undisturbed), database, [titles[process.pid] for process in survivors])


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def is_whole(folder: str, step: int) -> bool:
    return all(is_file(join(folder, f"checkpoints/{name_of(step)}/index-{rank:05d}.json")) for rank in range(2))


def garble(path: str) -> None:
    content = bytearray(read_bytes(path))
    content[-1] ^= 1
    write_bytes(path, bytes(content))


def run_id(folder: str) -> str:
    return str(json.loads(read_bytes(join(folder, "run.json")))["run_id"])


def test_the_adapter_and_the_optimizer_are_those_of_an_undisturbed_run(killed):
    file = "adapter/adapter_model.safetensors"
    assert read_bytes(join(killed.folder, file)) == read_bytes(join(killed.undisturbed, file))
    moved = load_file(Path(killed.undisturbed, file))
    assert all(weight.abs().sum() > 0 for name, weight in moved.items() if "lora_B" in name)
    last = f"checkpoints/{name_of(STEPS)}"
    with fetched(join(killed.folder, last)) as own, fetched(join(killed.undisturbed, last)) as other:
        shards = sorted(path.name for path in (own / "ds").glob("*optim_states.pt"))
        assert len(shards) == 2
        for shard in shards:
            states = [torch.load(folder / "ds" / shard, weights_only=False) for folder in (own, other)]
            assert same(*(state["optimizer_state_dict"] for state in states)), shard


def same(own: Any, other: Any) -> bool:
    if isinstance(own, torch.Tensor):
        return torch.equal(own, other)
    if isinstance(own, dict):
        return own.keys() == other.keys() and all(same(own[key], other[key]) for key in own)
    if isinstance(own, (list, tuple)):
        return len(own) == len(other) and all(map(same, own, other))
    return own == other if isinstance(own, (int, float, str, bool, type(None))) else type(own) is type(other)


def test_the_same_clips_came_in_the_same_order(killed):
    own, other = (read_lines(join(folder, "metrics.jsonl")) for folder in (killed.folder, killed.undisturbed))
    assert [line["step"] for line in own] == list(range(1, STEPS + 1))
    for line, expected in zip(own, other, strict=True):
        assert len(line["clips"]) == killed.recipe.training.global_batch
        assert {key: line[key] for key in line if "seconds" not in key} == {
            key: expected[key] for key in expected if "seconds" not in key
        }


def test_every_attempt_says_where_it_began_and_why(killed):
    first, second, third = attempts_of(killed.folder)
    assert (first.from_step, first.why) == (0, "started")
    assert second.from_step == 2
    # The other one's connection to it may be what is noticed first.
    assert re.match(r"worker [01] was lost: ", second.why)
    assert "Worker(" not in second.why
    assert second.call == first.call
    assert (third.from_step, third.why) == (2, "resumed")
    damage = "step-000004: adapter/adapter_model.safetensors is not what was written: other bytes of the same number"
    assert damage in third.refused
    tags = MlflowClient(killed.database).get_run(run_id(killed.folder)).data.tags
    assert tags["attempts"] == "3"
    assert [tags[f"attempt.{attempt.number}"] for attempt in (first, second, third)] == [
        str(attempt) for attempt in (first, second, third)
    ]
    assert is_file(join(killed.folder, "checkpoints/refused/step-000004/adapter/adapter_model.safetensors"))


def test_mlflow_has_one_run_with_each_step_once(killed):
    client = MlflowClient(killed.database)
    assert len(client.search_runs([client.get_run(run_id(killed.folder)).info.experiment_id])) == 2
    own, other = (
        sorted((point.step, point.value) for point in client.get_metric_history(run_id(folder), "reward"))
        for folder in (killed.folder, killed.undisturbed)
    )
    assert [step for step, _ in own] == list(range(1, STEPS + 1))
    assert own == other
    assert client.get_run(run_id(killed.folder)).info.status == "FINISHED"


def test_nothing_outlives_a_killed_driver(killed):
    # Ray's own agents notice later, and hold nothing that a new start needs.
    assert [one for one in killed.survivors if not one.endswith("Agent")] == []


def test_the_newest_checkpoints_and_the_best_are_kept(killed):
    for folder in (killed.folder, killed.undisturbed):
        summary = read_summary(folder)
        assert summary["finished"]
        assert summary["best"]["reward"] == max(
            sum(line["reward"] for line in pair) / 2 for pair in pairs(read_lines(join(folder, "metrics.jsonl")))
        )
        assert steps_in(folder) == sorted({summary["best"]["step"], STEPS - 2, STEPS})
        assert summary["best"]["adapter"] == join(folder, f"checkpoints/{name_of(summary['best']['step'])}/adapter")


def pairs(lines: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(lines[::2], lines[1::2], strict=True)


def test_a_finished_run_is_left_alone(killed, caplog):
    before = read_bytes(join(killed.folder, "summary.json"))
    with caplog.at_level(logging.INFO):
        summary = finetune(killed.recipe, resume=True)
    assert summary == json.loads(before)
    assert f"run 'killed' is finished; raise training.steps above {STEPS} to go on" in caplog.text
    assert read_bytes(join(killed.folder, "summary.json")) == before
    assert len(attempts_of(killed.folder)) == 3


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    return parse_recipe({**recipe.model_dump(mode="json"), **sections})


def test_names_are_refused_with_the_mend(killed):
    with pytest.raises(RecipeError, match=r"'killed': this run exists .*--resume\) or choose another name"):
        finetune(killed.recipe)
    tracking = {"run_name": "nobody", "uri": killed.database}
    with pytest.raises(RecipeError, match="'nobody': no such run in .* start it without --resume"):
        finetune(changed(killed.recipe, tracking=tracking), resume=True)
    training = {**killed.recipe.training.model_dump(mode="json"), "steps": 3}
    with pytest.raises(RecipeError, match=f"steps 3: run 'killed' has done {STEPS} steps already"):
        finetune(changed(killed.recipe, training=training), resume=True)
