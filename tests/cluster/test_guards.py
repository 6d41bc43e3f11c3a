"""Guards beside a real training: they see its judge hacked, the run ends for it, and goes on without making the base
again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
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

STEPS = 8
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
                "steps": STEPS, "lr": 5e-2, "warmup_steps": 0, "precision": "fp32", "checkpoint_every": 99,
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


def rows_of(recipe: Recipe) -> list[Row]:
    return [Row.of(line) for line in read_lines(f"{folder_of(recipe)}/guards.jsonl")]


def test_a_judge_that_is_hacked_ends_the_run_and_says_why(recipe: Recipe, summary: dict[str, Any]) -> None:
    folder = folder_of(recipe)
    verdict, rows = summary["verdict"], rows_of(recipe)
    assert verdict is not None
    assert (summary["finished"], summary["steps"]) == (True, verdict["given_at"])
    assert verdict["given_at"] < STEPS, "at the last step there is nothing left to save"
    assert [row.step for row in rows] == [*range(2, verdict["given_at"], 2)], "a look is known when the next is due"
    assert verdict["step"] == 2, "the later, the darker"
    assert re.match(r"over-optimised: from .* to step \d the training judge went from \S+ σ to \+", verdict["reason"])
    assert "dark fell from +0.0" in verdict["reason"]
    assert steps_in(folder) == [2, verdict["given_at"]]
    product, kept = (Path(path, WEIGHTS) for path in (summary["adapter"], f"{folder}/checkpoints/{name_of(2)}/adapter"))
    assert product.read_bytes() == kept.read_bytes()
    for row in rows:
        assert row.steps == STEPS
        assert set(row.together) == {"bright", "dark", "motion", "optical_flow", "flicker", "diversity", "kid"}
        bright, dark = row.together["bright"], row.together["dark"]
        assert (bright.role, dark.role) == ("training", "held-out")
        assert dark.change == pytest.approx(-bright.change, abs=1e-4)
        assert all(figure.margin is not None for figure in row.together.values())
        assert row.sets == {"some": row.together}, "there is one set"
    assert rows[-1].together["bright"].change > (rows[-1].together["bright"].margin or 0)


def test_the_figures_are_in_mlflow_and_the_wait_among_the_seconds(recipe: Recipe, summary: dict[str, Any]) -> None:
    ref = find_run(recipe, summary["mlflow"]["run_id"])
    client = MlflowClient(ref.uri)
    rows = rows_of(recipe)
    for name, values in {
        "2-held-out/guards.dark": [row.together["dark"].change for row in rows],
        "2-held-out/guards.dark.low": [row.together["dark"].low for row in rows],
        "2-held-out/guards.some.dark": [row.sets["some"]["dark"].change for row in rows],
        "1-reward/guards.bright": [row.together["bright"].change for row in rows],
    }.items():
        points = client.get_metric_history(ref.run_id, name)
        assert [point.step for point in points] == [row.step for row in rows]
        assert [point.value for point in points] == pytest.approx(values)
    waits = [step["seconds/guards"] for step in read_lines(f"{folder_of(recipe)}/metrics.jsonl")]
    assert waits[:2] == [0, 0], "the adapter of step 2 is handed over after that step's figures"
    assert waits[2] > 0
    assert summary["seconds_per_step"]["guards"] == pytest.approx(sum(waits) / len(waits))


def test_overruled_it_goes_on_with_the_same_base(recipe: Recipe, summary: dict[str, Any]) -> None:
    folder = Path(folder_of(recipe))
    base = (folder / "guards" / "base.npz").stat()
    first = (folder / "guards.jsonl").read_text()
    overruled = finetune(recipe, resume=True, overrule=True)
    assert (overruled["steps"], overruled["verdict"]) == (STEPS, None)
    assert (folder / "guards" / "base.npz").stat().st_mtime_ns == base.st_mtime_ns
    assert (folder / "guards.jsonl").read_text().startswith(first)
    rows = rows_of(recipe)
    assert [row.step for row in rows] == [*range(2, STEPS + 1, 2)], "the verdict's step was still to be looked at"
    assert len({row.together["bright"].change for row in rows}) == len(rows), "each row is of another adapter"
