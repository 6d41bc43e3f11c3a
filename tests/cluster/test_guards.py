"""Guards beside a real training: they see its judge hacked, the run ends for it, and goes on without making the base
again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.evaluation.guarding.rows import Row
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.checkpoints import name_of, steps_in
from rayvideo.runs.folder import folder_of
from rayvideo.storage import read_lines
from rayvideo.tracking import find_run
from rayvideo.training.launch import finetune
from rayvideo.training.preflight import check

pytestmark = pytest.mark.usefixtures("ray_cluster")

WEIGHTS = "adapter_model.safetensors"


class Colours(nn.Module):
    """Features for KID: a frame's mean colour."""

    @classmethod
    def load(cls, checkpoint: str | None) -> Self:
        return cls()

    def features(self, frames: Tensor) -> Tensor:
        return frames.mean((-2, -1))


@pytest.fixture(scope="module")
def recipe(tiny_pipeline: Path, tiny_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("guards")
    captions = folder / "some.txt"
    captions.write_text("".join(f"a {colour} cat\n" for colour in ("red", "green", "blue", "black", "white", "pink")))
    made = parse_recipe(
        {
            "model": {"path": str(tiny_pipeline), "lora": {"rank": 8, "alpha": 32}},
            "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [{"name": "bright", "type": "tests.cluster.judges:Brightness"}], "segments": 2},
            "training": {
                "steps": 6, "lr": 5e-2, "warmup_steps": 0, "precision": "fp32", "checkpoint_every": 99,
                "keep_checkpoints": 1, "workers": 2, "cpus_per_worker": 0.5, "batch_size": 1,
                "stop_rule": "rayvideo.training.overoptimisation:OverOptimised", "stop_options": {"patience": 1},
            },
            "evaluation": {
                "sets": {"some": str(captions)}, "seeds": [0, 1], "steps": 2, "previews": 0, "guards": 6, "every": 2,
                "judges": [{"name": "dark", "type": "tests.cluster.judges:Darkness"}],
                "cpus_per_worker": 0.5,
                "features": {
                    "type": "tests.cluster.test_guards:Colours", "reference": str(tiny_clips / "list.txt"),
                },
            },
            "tracking": {"run_name": "guarded"},
            "storage": str(folder / "runs"),
        }
    )  # fmt: skip
    check(made)
    return made


@pytest.fixture(scope="module")
def summary(recipe: Recipe, ray_cluster: None) -> dict[str, Any]:
    return finetune(recipe)


def test_a_judge_that_is_hacked_ends_the_run_and_says_why(recipe: Recipe, summary: dict[str, Any]) -> None:
    folder = folder_of(recipe)
    assert (summary["finished"], summary["steps"]) == (True, 4), "what is found of step 2 is known at step 4"
    assert (summary["verdict"]["step"], summary["verdict"]["given_at"]) == (2, 4)
    assert summary["verdict"]["reason"].startswith("over-optimised: from the base to step 2 the training judge went ")
    assert "dark fell from +0.00 σ" in summary["verdict"]["reason"]
    assert steps_in(folder) == [2, 4]
    product, kept = (Path(path, WEIGHTS) for path in (summary["adapter"], f"{folder}/checkpoints/{name_of(2)}/adapter"))
    assert product.read_bytes() == kept.read_bytes()

    (line,) = read_lines(f"{folder}/guards.jsonl")
    row = Row.of(line)
    assert (row.step, row.steps) == (2, 6)
    assert set(row.together) == {"bright", "dark", "motion", "optical_flow", "flicker", "diversity", "kid"}
    bright, dark = row.together["bright"], row.together["dark"]
    assert (bright.role, dark.role) == ("training", "held-out")
    assert dark.change == pytest.approx(-bright.change, abs=1e-4)
    assert all(figure.margin is not None for figure in row.together.values())
    assert row.sets == {"some": row.together}, "there is one set"


def test_the_figures_are_in_mlflow_and_the_wait_among_the_seconds(recipe: Recipe, summary: dict[str, Any]) -> None:
    ref = find_run(recipe, summary["mlflow"]["run_id"])
    client = MlflowClient(ref.uri)
    (line,) = read_lines(f"{folder_of(recipe)}/guards.jsonl")
    for name in ("2-held-out/guards.dark", "2-held-out/guards.some.dark", "1-reward/guards.bright"):
        (point,) = client.get_metric_history(ref.run_id, name)
        assert point.step == 2
    (point,) = client.get_metric_history(ref.run_id, "2-held-out/guards.dark.low")
    assert point.value == pytest.approx(line["together"]["dark"]["low"])
    waits = [step["seconds/guards"] for step in read_lines(f"{folder_of(recipe)}/metrics.jsonl")]
    assert len(waits) == 4
    assert waits[3] > 0, "what is found of step 2 is waited for"
    assert waits[1] == 0, "the adapter of step 2 is handed over after that step's figures"
    assert waits[2] > 0
    assert summary["seconds_per_step"]["guards"] == pytest.approx(sum(waits) / 4)


def test_overruled_it_goes_on_with_the_same_base(recipe: Recipe, summary: dict[str, Any]) -> None:
    folder = Path(folder_of(recipe))
    base = (folder / "guards" / "base.npz").stat()
    first = (folder / "guards.jsonl").read_text()
    overruled = finetune(recipe, resume=True, overrule=True)
    assert (overruled["steps"], overruled["verdict"]) == (6, None)
    assert (folder / "guards" / "base.npz").stat().st_mtime_ns == base.st_mtime_ns
    lines = (folder / "guards.jsonl").read_text()
    assert lines.startswith(first)
    rows = {step: Row.of(json.loads(line)) for step, line in zip((2, 4, 6), lines.splitlines(), strict=True)}
    assert {step: row.step for step, row in rows.items()} == {2: 2, 4: 4, 6: 6}, "step 4 was still to be looked at"
    changes = torch.tensor([row.together["bright"].change for row in rows.values()])
    assert changes.isfinite().all()
    assert len(set(changes.tolist())) == 3, "each row is of another adapter"
