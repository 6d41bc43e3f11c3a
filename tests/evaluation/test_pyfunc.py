"""The tuned model through MLflow, in a process that knows nothing but its address."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from rayvideo.evaluation.adapter import put_on
from rayvideo.evaluation.generate import generate_clips, to_pixels
from rayvideo.models import ModelError, load_model
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.tracking import RunRef, Tracker, create_run
from rayvideo.training.launch import _log_product
from tests.documents import ROOT, block_of

CAPTIONS = ["red cat", "blue snail"]


@pytest.fixture(scope="module")
def recipe(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "reward": {"judges": [{"name": "judge"}]},
            "training": {"precision": "fp32"},
            "evaluation": {"steps": 2, "seeds": [3]},
            "tracking": {"register_as": "tuned-cats"},
            "storage": str(tmp_path_factory.mktemp("runs")),
        }
    )


@pytest.fixture(scope="module")
def ref(recipe: Recipe, adapter: Path) -> RunRef:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ref = create_run(recipe, "run")
        _log_product(recipe, adapter, 7, Tracker(ref))
    return ref


def predicted(program: str, ref: RunRef, file: Path) -> np.ndarray:
    """`clips` of a program, which runs in a process and a folder of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport numpy\nnumpy.save({str(file)!r}, clips)"],
        capture_output=True,
        text=True,
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ref.uri},
    )
    assert done.returncode == 0, done.stderr
    return np.load(file)


def made(recipe: Recipe, adapter: Path, seed: int, steps: int) -> np.ndarray:
    model = load_model(recipe.model.path)
    put_on(model, str(adapter))
    size: dict[str, Any] = {"frames": 4, "height": 64, "width": 64}
    return to_pixels(generate_clips(model, CAPTIONS, [seed, seed], steps=steps, guidance=3.0, **size))


def test_a_fresh_process_makes_the_clips_of_captions(
    recipe: Recipe, ref: RunRef, adapter: Path, tmp_path: Path
) -> None:
    """With the recipe's values for what is not said."""
    short = f"import mlflow; clips = mlflow.pyfunc.load_model('runs:/{ref.run_id}/tuned').predict({CAPTIONS})"
    clips = predicted(short, ref, tmp_path / "clips.npy")
    assert clips.shape == (2, 4, 64, 64, 3)
    assert clips.dtype == np.uint8
    assert np.abs(clips.astype(int) - made(recipe, adapter, 3, 2)).max() <= 1


def test_the_documents_program_runs(recipe: Recipe, ref: RunRef, adapter: Path, tmp_path: Path) -> None:
    """By the name in the registry, with a seed and steps of its own."""
    program = block_of("docs/mlflow.md", "python").replace("sqlite:///runs/mlflow.db", ref.uri)
    clips = predicted(program, ref, tmp_path / "clips.npy")
    assert np.abs(clips.astype(int) - made(recipe, adapter, 5, 20)).max() <= 1


def test_the_run_names_its_model(ref: RunRef) -> None:
    client = MlflowClient(ref.uri)
    run = client.get_run(ref.run_id)
    [output] = run.outputs.model_outputs
    assert output.step == 7
    assert run.data.tags["model"] == f"models:/{output.model_id}"
    assert run.data.tags["registered"] == "models:/tuned-cats/1"
    assert client.get_model_version("tuned-cats", "1").run_id == ref.run_id
    model = client.get_logged_model(output.model_id)
    assert (model.name, model.source_run_id, str(model.status)) == ("tuned", ref.run_id, "READY")


def test_a_second_product_is_the_next_version(recipe: Recipe, ref: RunRef, adapter: Path) -> None:
    second = create_run(recipe, "second")
    _log_product(recipe, adapter, 1, Tracker(second))
    assert MlflowClient(ref.uri).get_run(second.run_id).data.tags["registered"] == "models:/tuned-cats/2"


def test_nothing_of_it_is_pickled(ref: RunRef) -> None:
    client = MlflowClient(ref.uri)
    place = urlsplit(client.get_model_version("tuned-cats", "1").source).path
    files = [str(file.relative_to(place)) for file in Path(place).rglob("*") if file.is_file()]
    assert [file for file in files if file.endswith("adapter/adapter_model.safetensors")]
    assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pt", ".py"))]
    flavor = yaml.safe_load(Path(place, "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["loader_module"] == "rayvideo.evaluation.pyfunc"
    assert "python_model" not in flavor


def test_another_place_of_the_base_is_given_when_it_is_loaded(
    ref: RunRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ref.uri)
    with pytest.raises(ModelError, match="moved"):
        mlflow.pyfunc.load_model("models:/tuned-cats/1", model_config={"model_path": str(tmp_path / "moved")})
