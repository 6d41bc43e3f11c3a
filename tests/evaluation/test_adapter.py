"""What can't make clips, or would make the base's, is refused before anything is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.adapter import check_generator
from rayvideo.evaluation.compare import check
from rayvideo.evaluation.produce import order
from rayvideo.models import ModelError, load_model
from rayvideo.models.lora import WEIGHTS, add_lora, save_adapter
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.sections import Lora
from tests import tiny_wan


@pytest.fixture
def recipe(tiny_pipeline: Path, tiny_judge: Path, tmp_path: Path) -> Recipe:
    (tmp_path / "captions.txt").write_text("red cat\n")
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    return parse_recipe(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"manifest": "unused", "height": 64, "width": 64},
            "reward": {"judges": [{"name": "judge", **judge}]},
            "evaluation": {"sets": {"in": str(tmp_path / "captions.txt")}},
        }
    )


@pytest.fixture
def fresh(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """An adapter that never learned anything."""
    denoiser = load_model(tiny_pipeline, parts=("denoiser",)).denoiser
    save_adapter(add_lora(denoiser, Lora(), seed=0), tmp_path / "fresh")
    return tmp_path / "fresh"


def test_a_trained_adapter_passes(recipe: Recipe, adapter: Path) -> None:
    check_generator(recipe, str(adapter))
    check(recipe, str(adapter))
    check_generator(recipe, None)


def test_an_untrained_adapter_is_refused_by_every_job(recipe: Recipe, fresh: Path, tmp_path: Path) -> None:
    for start in (
        lambda: check(recipe, str(fresh)),
        lambda: order(recipe, str(tmp_path / "captions.txt"), str(fresh)),
    ):
        with pytest.raises(ModelError, match="fresh: the adapter is untrained and changes nothing"):
            start()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_adapter_that_does_not_bind_is_refused_by_its_name(
    recipe: Recipe, adapter: Path, tmp_path: Path, scheme: str
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "foreign")
    weights = load_file(folder / WEIGHTS)
    save_file({name.replace("down_blocks", "blocks"): w for name, w in weights.items()}, folder / WEIGHTS)
    with pytest.raises(
        ModelError, match=rf"^{scheme}{folder}: the adapter is of another model: \d+ tensors are missing"
    ):
        check_generator(recipe, f"{scheme}{folder}")
    (folder / WEIGHTS).unlink()
    with pytest.raises(EvaluationError, match=f"foreign holds no {WEIGHTS}"):
        check_generator(recipe, f"{scheme}{folder}")


def test_a_model_that_lacks_weights_is_refused(recipe: Recipe, tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": str(folder)})})
    with pytest.raises(ModelError, match="'unet' can't be loaded: .* holds no weights"):
        check(recipe, None)
    with pytest.raises(ModelError, match="'unet' can't be loaded: .* holds no weights"):
        order(recipe, str(tmp_path / "captions.txt"), None)


def test_the_adapters_config_counts_too(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "scaled")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    with pytest.raises(ModelError, match="lora_alpha in adapter_config.json is 0 or not finite"):
        check_generator(recipe, str(folder))


def test_a_number_format_that_the_model_refuses_is_refused_here_already(recipe: Recipe, tmp_path: Path) -> None:
    path = str(tiny_wan.save_pipeline(tmp_path / "wan"))
    tree = recipe.model_dump(mode="json")
    tree["model"]["path"], tree["data"]["frames"], tree["training"]["precision"] = path, 17, "bf16"
    check_generator(parse_recipe(tree), None)
    tree["training"]["precision"] = "fp16"
    with pytest.raises(ModelError, match=r"^training\.precision 'fp16'"):
        check_generator(parse_recipe(tree), None)
