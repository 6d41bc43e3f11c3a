"""A run that its stop rule ends: whose adapter it keeps, that nothing starts it again, and how it goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.attempts import attempts_of
from rayvideo.runs.checkpoints import CheckpointError, name_of, steps_in
from rayvideo.runs.folder import folder_of
from rayvideo.tracking import RunRef, find_run
from rayvideo.training import launch
from rayvideo.training.launch import finetune
from rayvideo.training.preflight import check

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS = 4
VERDICT = {"step": 1, "reason": "2 steps are enough", "given_at": 2}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def recipe(tiny_pipeline: Path, tiny_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = parse_recipe(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [{"name": "bright", "type": "tests.cluster.judges:Brightness"}], "segments": 2},
            "training": {
                "steps": STEPS, "lr": 1e-3, "precision": "fp32", "checkpoint_every": 99, "keep_checkpoints": 1,
                "stop_rule": "tests.cluster.rules:Ends", "stop_options": {"after": 2, "favourite": 1},
            },
            "tracking": {"run_name": "ended"},
            "storage": str(tmp_path_factory.mktemp("verdict")),
        }
    )  # fmt: skip
    check(made)
    return made


@pytest.fixture(scope="module")
def summary(recipe: Recipe, ray_cluster: None) -> dict[str, Any]:
    return finetune(recipe)


def ref_of(recipe: Recipe, summary: dict[str, Any]) -> RunRef:
    return find_run(recipe, summary["mlflow"]["run_id"])


def logged(recipe: Recipe, summary: dict[str, Any]) -> Run:
    ref = ref_of(recipe, summary)
    return MlflowClient(ref.uri).get_run(ref.run_id)


def steps_of(folder: str) -> list[int]:
    return [json.loads(line)["step"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_the_run_ends_with_the_adapter_that_the_verdict_names(recipe, summary):
    folder = folder_of(recipe)
    assert summary == json.loads(Path(folder, "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["verdict"]) == (True, 2, VERDICT)
    assert steps_of(folder) == [1, 2]
    assert len(attempts_of(folder)) == 1, "the workers were started again"
    assert steps_in(folder) == [1, 2], "what the rule keeps was deleted, or never saved"
    kept, newest = (Path(folder, "checkpoints", name_of(step)) for step in (1, 2))
    product = Path(summary["adapter"], WEIGHTS).read_bytes()
    assert product == (kept / "adapter" / WEIGHTS).read_bytes()
    assert product != (newest / "adapter" / WEIGHTS).read_bytes()
    states = [json.loads((checkpoint / "state.json").read_text()) for checkpoint in (kept, newest)]
    assert [state["verdict"] for state in states] == [None, VERDICT]
    assert [len(state["stop_rule"]["rewards"]) for state in states] == [1, 2]
    run = logged(recipe, summary)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["verdict"], run.data.tags["verdict.step"]) == (VERDICT["reason"], "1")


def test_resumed_it_is_left_as_it_is(recipe, summary, caplog):
    with caplog.at_level(logging.INFO):
        assert finetune(recipe, resume=True) == summary
    assert "run 'ended' ended after step 2: 2 steps are enough; --overrule goes on" in caplog.text
    assert len(attempts_of(folder_of(recipe))) == 1


def test_workers_that_are_lost_after_the_verdict_have_nothing_left_to_do(recipe, summary):
    """Here all of the run is started again, as Ray Train starts its workers."""
    again = launch._train(recipe, recipe, ref_of(recipe, summary), "started", 0.0)
    assert again["verdict"] == VERDICT
    assert steps_of(folder_of(recipe)) == [1, 2]
    assert [attempt.from_step for attempt in attempts_of(folder_of(recipe))] == [0, 2]


def test_a_favourite_that_is_gone_is_named(recipe, summary):
    folder = folder_of(recipe)
    kept = Path(folder, "checkpoints", name_of(1))
    file = Path(folder, "summary.json")
    file.write_text(json.dumps({**summary, "finished": False}))
    kept.rename(kept.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match=r"in favour of the adapter of step 1, .*: step-000001: .*--overrule"):
        finetune(recipe, resume=True)
    kept.with_name("elsewhere").rename(kept)
    assert finetune(recipe, resume=True)["verdict"] == VERDICT


def test_overruled_it_goes_on_to_the_last_step(recipe, summary):
    with pytest.raises(RecipeError, match="--overrule .* give --resume with it"):
        finetune(recipe, overrule=True)
    folder = folder_of(recipe)
    overruled = finetune(recipe, resume=True, overrule=True)
    assert (overruled["finished"], overruled["steps"], overruled["verdict"]) == (True, STEPS, None)
    assert steps_of(folder) == [1, 2, 3, 4]
    newest = Path(folder, "checkpoints", name_of(STEPS))
    assert Path(overruled["adapter"], WEIGHTS).read_bytes() == (newest / "adapter" / WEIGHTS).read_bytes()
    assert attempts_of(folder)[-1].why == "resumed, the verdict of step 2 overruled"
    assert logged(recipe, summary).data.tags["verdict"] == "overruled: 2 steps are enough"
    assert json.loads((newest / "state.json").read_text())["overruled"]
    assert finetune(recipe, resume=True) == overruled
