"""What a recipe takes and what would fit, on tiny models of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo import cli
from rayvideo.errors import RecipeError, UserError
from rayvideo.models import load_model
from rayvideo.planning.choose import PROFILES, changed, choose, on_card
from rayvideo.planning.command import bytes_of
from rayvideo.planning.estimate import Rates, estimate
from rayvideo.planning.refuse import refuse_on_card
from rayvideo.planning.rehearsal import rehearse
from rayvideo.recipe import Recipe, parse_recipe
from tests import tiny_wan

RATES = Rates(1e12, "given")


def dim(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Scores [N] of frames: how dark."""
    return 1 - frames.mean((1, 2, 3))


def recipe_of(pipeline: Path, judge: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"path": str(pipeline)},
        "data": {"manifest": "clips", "height": 64, "width": 64},
        "editing": {"steps": 4},
        "reward": {"judges": [judge]},
        "training": {"precision": "fp32", "workers": 4, "gpus_per_worker": 1, "zero_stage": 2},
        "evaluation": {"sets": {"some": "captions.txt"}, "previews": 0},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return parse_recipe(tree)


@pytest.fixture(scope="module")
def judge(tiny_judge: Path) -> dict[str, Any]:
    files = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    return {"name": "tiny", "num_gpus": 0.25, **files}


def test_weights_are_those_that_would_be_loaded(tiny_pipeline: Path, judge: dict[str, Any]) -> None:
    counted = rehearse(recipe_of(tiny_pipeline, judge, training={"precision": "bf16"}))
    model = load_model(tiny_pipeline, dtype=torch.bfloat16, parts=("denoiser", "vae"))
    frozen = [*model.denoiser.parameters(), *model.denoiser.buffers()]
    assert counted.frozen == sum(one.nbytes for one in frozen)
    assert counted.vae == sum(one.nbytes for one in model.tensors()) - counted.frozen
    tiny = counted.judges["tiny"]
    assert tiny is not None
    assert tiny.weights > 0
    assert tiny.activations > 0


@pytest.mark.parametrize("kind", ["2.1", "A14B"])
def test_formats_of_shapes_are_those_of_loaded_weights(kind: tiny_wan.Kind, tmp_path: Path) -> None:
    pipeline = tiny_wan.save_pipeline(tmp_path, kind)
    loaded, shapes = (
        load_model(pipeline, dtype=torch.bfloat16, device=device, parts=("denoiser",)).denoiser.state_dict()
        for device in ("cpu", "meta")
    )
    assert {name: one.dtype for name, one in shapes.items()} == {name: one.dtype for name, one in loaded.items()}
    assert {one.dtype for one in shapes.values()} == {torch.bfloat16, torch.float32}


def test_an_expert_that_is_never_asked_is_not_counted(tmp_path: Path, judge: dict[str, Any]) -> None:
    pipeline = tiny_wan.save_pipeline(tmp_path / "model", "A14B")
    (tmp_path / "captions.txt").write_text("red ball\n")
    sections: dict[str, Any] = {"data": {"frames": 5, "height": 32, "width": 32}, "model": {"shift": 1.0}}
    sets = {"sets": {"some": str(tmp_path / "captions.txt")}}
    whole = rehearse(recipe_of(pipeline, judge, **sections, evaluation=sets | {"previews": 1}))
    low = rehearse(recipe_of(pipeline, judge, **sections, evaluation=sets))
    assert low.frozen == pytest.approx(whole.frozen / 2, rel=0.01)
    assert low.peak == whole.peak


def test_a_judge_of_yours_is_unknown(tiny_pipeline: Path) -> None:
    own = {"name": "own", "type": f"{__name__}:dim", "num_gpus": 0.25}
    recipe = recipe_of(tiny_pipeline, own)
    counted = rehearse(recipe)
    assert counted.judges == {"own": None}
    assert estimate(recipe, counted, RATES).judges == {"own": None}


def test_stages_share_what_they_share(tiny_pipeline: Path, judge: dict[str, Any]) -> None:
    recipe = recipe_of(tiny_pipeline, judge)
    counted = rehearse(recipe)

    def worker(**training: Any) -> dict[str, int]:
        chosen = changed(recipe, {f"training.{key}": value for key, value in training.items()})
        return estimate(chosen, counted, RATES, batch=2).worker

    assert worker()["denoiser"] == counted.frozen
    assert worker(zero_stage=3)["denoiser"] == counted.frozen // 4
    assert worker(zero_stage=3, offload="cpu")["denoiser"] == 0
    assert worker(zero_stage=3)["gathered weights"] == counted.frozen  # all of a model so small
    assert worker(zero_stage=1)["adapter and optimizer"] < 4 * 6 * counted.trainable
    half = worker(batch_size=1, accumulation=2)["activations"]
    assert half < worker(accumulation=2)["activations"] < 2.01 * half


def test_more_memory_never_makes_a_step_longer(tiny_pipeline: Path, judge: dict[str, Any]) -> None:
    recipe = recipe_of(tiny_pipeline, judge, model={"checkpointing": "blocks"})
    own = rehearse(recipe)
    needed = on_card(recipe, estimate(recipe, own, RATES))
    roomy, tight = (choose(recipe, own, memory, RATES) for memory in (2 * needed, int(0.995 * needed)))
    assert roomy is not None
    assert tight is not None
    assert roomy.changes == {"model.checkpointing": "none"}
    assert tight.same_numbers
    assert tight.changes
    assert on_card(tight.recipe, tight.estimate) < needed
    assert roomy.estimate.seconds < tight.estimate.seconds
    assert tight.recipe.training.global_batch == recipe.training.global_batch
    least = {**PROFILES[-1], "training.precision": "bf16", "model.vae_context": 0}
    assert choose(changed(recipe, least), own, 1, RATES) is None


def test_what_can_not_fit_is_refused_with_its_mend(tiny_pipeline: Path, judge: dict[str, Any]) -> None:
    recipe = recipe_of(tiny_pipeline, judge, model={"checkpointing": "none"}, training={"batch_size": 8})
    needed = on_card(recipe, estimate(recipe, rehearse(recipe), RATES))
    refuse_on_card(recipe, needed)
    refuse_on_card(recipe, int(0.9 * needed))  # within a plan's error
    with pytest.raises(RecipeError, match="what fits: .*(batch_size|checkpointing|offload)="):
        refuse_on_card(recipe, int(0.8 * needed))


def test_command_prints_and_writes(
    tiny_pipeline: Path, judge: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe_of(tiny_pipeline, judge).model_dump(mode="json")))
    command = ["plan", "--recipe", str(file), "--rate", "100", "--json", str(tmp_path / "plan.json")]
    cli.main([*command, "--gpu-memory", "80GiB", "--workers", "2"])
    said, written = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "2 workers, each" in said
    assert "100 TFLOP/s a worker (given)" in said
    assert written["fits"] is True
    assert written["gpu_memory"] == 80 * 2**30
    leanest = ["model.checkpointing=clips", "reward.decode=frame_by_frame", "model.vae_context=0"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--gpu-memory", "100MiB", "training.precision=bf16", *leanest])
    assert "does not fit" in capsys.readouterr().out


def test_sizes() -> None:
    assert bytes_of("80GiB") == bytes_of("80") == 80 * 2**30
    assert bytes_of("24 GB") == 24 * 10**9
    with pytest.raises(UserError, match="80 apples"):
        bytes_of("80 apples")
