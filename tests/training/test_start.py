"""A training that begins from another program's adapter: its step 0 is that adapter, and it learns from there on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from rayvideo.errors import RecipeError
from rayvideo.evaluation.previews import Previews
from rayvideo.models import ModelError, export, load_model
from rayvideo.models.lora import load_adapter
from rayvideo.models.modelscope import ModelScope
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs.checkpoints import CHECKPOINTS, name_of
from rayvideo.serving.local import LocalPool
from rayvideo.tracking import RunRef, Tracker, create_run
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.launch import _begin
from rayvideo.training.learning import FirstUpdates
from rayvideo.training.preflight import check
from tests.training.test_objectives import CPU, recipe_for, table  # noqa: F401 - a fixture
from tests.training.test_preflight import recipe_with

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def file(adapter: Path, tmp_path: Path) -> Path:
    """The adapter as diffusers has it."""
    (written,) = export.export_diffusers(adapter, tmp_path / "lora.safetensors", ModelScope)
    return Path(written)


def begun_from(file: Path, recipe: Recipe) -> Recipe:
    """The recipe with a start."""
    tree = recipe.model_dump(mode="json")
    tree["model"]["lora"] |= {"start": str(file), "alpha": 2.0}
    return parse_recipe(tree)


def put_together(recipe: Recipe, table: Any, *, fresh: bool = True) -> Any:  # noqa: F811
    """The parts of its training, in this process."""
    return assemble(
        recipe,
        table,
        LocalPool(recipe.reward.judges),
        CPU,
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
        fresh=fresh,
    )


@torch.no_grad()
def predict(model: Any) -> torch.Tensor:
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found: torch.Tensor = model.predict(latents, torch.tensor(500), torch.ones(1, 48, 32))
    return found


def test_step_0_is_the_adapter_and_a_step_moves_all_of_it(tiny_pipeline, adapter, file, table):  # noqa: F811
    recipe = begun_from(file, recipe_for(tiny_pipeline))
    built = put_together(recipe, table)
    tuned = load_model(tiny_pipeline, parts=("denoiser",))
    plain = predict(tuned)
    tuned.denoiser = load_adapter(tuned.denoiser, adapter)
    torch.testing.assert_close(predict(built.model), predict(tuned), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(plain, predict(tuned), atol=1e-2)
    before = {name: weight.clone() for name, weight in built.engine.adapter().items()}
    values = built.trainer.step(1)
    assert np.isfinite(values["loss"])
    assert values["gradient_norm"] > 0
    after = built.engine.adapter()
    assert not any(torch.equal(before[name], weight) for name, weight in after.items())
    assert FirstUpdates(1, done=False).look(1, built.engine.gradients()) is None
    built.engine.close()


def test_a_checkpoint_does_without_the_start(tiny_pipeline, file, table, tmp_path):  # noqa: F811
    recipe = begun_from(file, recipe_for(tiny_pipeline))
    first = put_together(recipe, table)
    first.trainer.step(1)
    first.engine.save(tmp_path / "saved")
    expected = first.trainer.step(2)["loss"]
    wanted = first.engine.adapter()
    first.engine.close()
    file.unlink()
    again = put_together(recipe, table, fresh=False)
    again.engine.load(tmp_path / "saved")
    assert again.trainer.step(2)["loss"] == expected
    assert all(torch.equal(weight, wanted[name]) for name, weight in again.engine.adapter().items())
    again.engine.close()


def test_it_is_looked_at_before_anything_starts(tiny_pipeline, tiny_judge, file, tmp_path, caplog):
    storage, run = {"storage": str(tmp_path / "runs")}, {"tracking": {"run_name": "first"}}
    recipe = begun_from(file, recipe_with(tiny_pipeline, tiny_judge, tmp_path, **storage, **run))
    with caplog.at_level("INFO"):
        check(recipe)
    assert "layers begin from model.lora.start, 0 start fresh" in caplog.text
    file.unlink()
    for resume in (False, True):  # a run that has no checkpoint yet begins from it again
        with pytest.raises(ModelError, match=r"^model\.lora\.start: .*lora\.safetensors: no adapter here"):
            check(recipe, resume=resume)
    (tmp_path / "runs" / "first" / CHECKPOINTS / name_of(1)).mkdir(parents=True)
    check(recipe, resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"model\.lora\.start.*it names no file or folder"),
        ({}, r"model\.lora\.start"),
        ({"medium": "a.safetensors"}, r"model\.lora\.start.*medium"),
    ],
)
def test_what_is_no_path_is_refused(tiny_pipeline, tiny_judge, tmp_path, given, message):
    with pytest.raises(RecipeError, match=message):
        recipe_with(tiny_pipeline, tiny_judge, tmp_path, model__lora={"start": given})


def test_previews_of_step_0_show_it_beside_the_base(tiny_pipeline, file, table, tmp_path):  # noqa: F811
    (tmp_path / "captions.txt").write_text("red cat\n")
    tree = begun_from(file, recipe_for(tiny_pipeline)).model_dump(mode="json")
    tree["data"]["frames"] = 4
    tree["evaluation"] |= {"sets": {"in": str(tmp_path / "captions.txt")}, "steps": [2]}
    recipe = parse_recipe(tree | {"storage": str(tmp_path / "runs")})
    rows = table.rows([0])
    embeddings = {"": table.unconditional("")[0], "red cat": rows.embeddings[0]}
    tracker = Tracker(create_run(recipe, tmp_path / "runs" / "run"))
    shown = {}
    for name, one in (("begun", recipe), ("base", recipe_without_start(recipe))):
        built = put_together(one, table)
        previews = Previews(one, built.model, embeddings, LocalPool(one.reward.judges), str(tmp_path / name), tracker)
        shown[name] = previews.show(0)
        built.engine.close()
    judged = "preview/in/judge"
    assert shown["begun"][f"{judged}.base"] == shown["base"][f"{judged}.base"] == shown["base"][f"{judged}.tuned"]
    assert abs(shown["begun"][f"{judged}.tuned"] - shown["begun"][f"{judged}.base"]) > 1e-4


def recipe_without_start(recipe: Recipe) -> Recipe:
    tree = recipe.model_dump(mode="json")
    return parse_recipe(tree | {"model": tree["model"] | {"lora": tree["model"]["lora"] | {"start": None}}})


def test_mlflow_is_told_which_weights_it_began_from(tiny_pipeline, file, table, tmp_path):  # noqa: F811
    tree = begun_from(file, recipe_for(tiny_pipeline)).model_dump(mode="json")
    run = {"tracking": tree["tracking"] | {"run_name": "first"}, "storage": str(tmp_path / "runs")}
    ref: RunRef = _begin(parse_recipe(tree | run), table, None)
    data = MlflowClient(ref.uri).get_run(ref.run_id).data
    assert data.params["model.lora.start"] == str(file)
    assert data.tags["adapter.start"] == hashlib.sha256(file.read_bytes()).hexdigest()
