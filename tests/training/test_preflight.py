"""What can't work is refused before anything starts, with the key, the value and what is allowed."""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from diffusers import UNet3DConditionModel

from rayvideo.data import latents
from rayvideo.errors import RecipeError, UserError
from rayvideo.evaluation import EvaluationError, compare
from rayvideo.evaluation.findings import roles
from rayvideo.evaluation.heldout import trained_on
from rayvideo.models import ModelError, load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import Reward
from rayvideo.runs.folder import write_recipe
from rayvideo.sections import Lora
from rayvideo.tracking import TrackingError
from rayvideo.training.preflight import check
from tests import tiny


class Flat(Reward):
    """Says a number, and that is all."""

    def score(self, frames, prompts):
        return frames.flatten(1).mean(1)


class Exact(Flat):
    """Takes no option but one."""

    @classmethod
    def load(cls, checkpoint, *, target, resize, dtype):
        return cls()


class Ungraded(Flat):
    """Gives no gradient."""

    differentiable = False

    @classmethod
    def load(cls, checkpoint, **options):
        return cls()


class Narrow(Flat):
    """Forgets what every judge is told."""

    @classmethod
    def load(cls, checkpoint):
        return cls()


class Faulty(Ungraded):
    """Has a mistake where it looks for mistakes."""

    @classmethod
    def check(cls, checkpoint, **options):
        raise KeyError("a mistake")


class Featureless:
    """Lacks what makes features."""

    load = Ungraded.load


def recipe_with(tiny_pipeline: Path, tiny_judge: Path, folder: Path, **changes: Any) -> Recipe:
    """A recipe that passes, unless `changes` (dotted keys with `__`) spoil it."""
    (folder / "captions.txt").write_text("cat\n")
    (folder / "list.txt").write_text("a.mp4|||cat\n")
    judge = {"checkpoint": str(tiny_judge / "judge.pt"), "architecture": str(tiny_judge / "open_clip_config.json")}
    tree: dict[str, Any] = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(folder / "list.txt"), "height": 64, "width": 64},
        "reward": {"judges": [{"name": "judge", **judge}]},
        "evaluation": {"sets": {"in": str(folder / "captions.txt")}},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        section: Any = tree
        for part in path:
            section = section[int(part) if part.isdigit() else part]
        section[int(last) if last.isdigit() else last] = value
    return parse_recipe(tree)


def test_a_complete_recipe_passes(tiny_pipeline, tiny_judge, tmp_path):
    check(recipe_with(tiny_pipeline, tiny_judge, tmp_path))


def test_what_the_adapter_binds_to_is_said(tiny_pipeline, tiny_judge, tmp_path, caplog):
    with caplog.at_level("INFO"):
        check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, model__lora={"rank": 2, "targets": ["to_q"]}))
    adapted = add_lora(load_model(tiny_pipeline, parts=("denoiser",)).denoiser, Lora(rank=2, targets=("to_q",)), seed=0)
    layers = sum(name.endswith("to_q.lora_A.default.weight") for name in lora_parameters(adapted))
    numbers = sum(weight.numel() for weight in lora_parameters(adapted).values())
    assert f"adapter: {layers} layers, {numbers:,} parameters" in caplog.text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_are_looked_through_and_not_read(tiny_pipeline, tiny_judge, tmp_path, part):
    """A file with a hole in the place of its weights passes, one that is cut off does not."""
    pipeline = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    (file,) = (pipeline / part).glob("*.safetensors")
    content = file.read_bytes()
    with file.open("wb") as out:
        out.write(content[: 8 + int.from_bytes(content[:8], "little")])
        out.truncate(len(content))
    recipe = recipe_with(pipeline, tiny_judge, tmp_path)
    check(recipe)
    latents.check(recipe)
    os.truncate(file, len(content) - 1)
    with pytest.raises(ModelError, match=f"'{part}' can't be loaded: .* is it complete"):
        check(recipe)


def test_parts_of_different_models_are_refused(tiny_pipeline, tiny_judge, tmp_path):
    pipeline = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    unet = UNet3DConditionModel.from_config({**tiny.build_unet().config, "cross_attention_dim": 24})
    unet.save_pretrained(pipeline / "unet")
    with pytest.raises(ModelError, match="text tower's embeddings are 32 wide, the denoiser takes 24"):
        check(recipe_with(pipeline, tiny_judge, tmp_path))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model__path": "nowhere/at/all"}, UserError, "nowhere/at/all: neither a folder with model_index.json"),
        ({"data__height": 60}, ModelError, "data.height, data.width: frames of 60x64 .* multiples of 8"),
        (
            {"model__lora": {"targets": ["to_q", "to_qq"]}},
            UserError,
            r"model\.lora\.targets: no layer of the denoiser is called 'to_qq'; its layers are .*to_k, to_out\.0, to_q",
        ),
        (
            {"model__lora": {"targets": ["attn1"]}},
            UserError,
            r"model\.lora\.targets: 'attn1' names a Attention, which has no matrix",
        ),
        ({"data__manifest": "gone.txt"}, UserError, r"gone\.txt"),
        ({"data__manifest": None, "data__prepared": "gone"}, UserError, r"data\.prepared 'gone' is no folder"),
        ({"evaluation__sets": {"in": "gone.txt"}}, UserError, r"gone\.txt"),
        (
            {"reward__judges__0__checkpoint": "gone.pt"},
            RecipeError,
            r"reward\.judges\.0\.checkpoint 'gone\.pt' is not a file",
        ),
        (
            {"reward__judges__0__options": {"version": "2.1"}},
            RecipeError,
            r"reward\.judges\.0\.checkpoint '.*judge\.pt' is not HPSv2 2\.1",
        ),
        (
            {"reward__judges__0__checkpoint": "xswu/HPSv2"},
            RecipeError,
            r"reward\.judges\.0\.options\.version is not set",
        ),
        (
            {"evaluation__judges": [{"name": "pick", "type": "pickscore", "checkpoint": "/gone/pickscore"}]},
            RecipeError,
            r"evaluation\.judges\.0\.checkpoint '/gone/pickscore' is neither a folder nor a hub id",
        ),
        (
            {"reward__judges__0__architecture": "gone.json"},
            RecipeError,
            r"reward\.judges\.0\.architecture 'gone\.json' is not a file",
        ),
        (
            {"reward__judges__0__type": "nothing:Here"},
            RecipeError,
            r"reward\.judges\.0\.type: reward type 'nothing:Here'",
        ),
        (
            {"reward__judges__0__type": f"{__name__}:Ungraded"},
            RecipeError,
            r"reward\.judges\.0\.type .*'judge' gives no gradient to train on; list it under evaluation\.judges",
        ),
        (
            {"reward__judges__0__type": f"{__name__}:Ungraded", "training": {"objective": "draft"}},
            RecipeError,
            r"gives no gradient .* set training\.objective 'draft' to 'ddpo' or 'rwr', which need none",
        ),
        (
            {"reward__judges__0__options": {"verson": "2.0"}},
            RecipeError,
            r"^reward\.judges\.0\.options\.verson is no.* option of 'hpsv2'; did you mean 'version'\? Allowed: version",
        ),
        (
            {"reward__judges__0__options": {"dtype": "bf16"}},
            RecipeError,
            r"^reward\.judges\.0\.options\.dtype is not allowed: dtype stands beside options",
        ),
        (
            {"reward__judges__0__architecture": "ViT-H-41"},
            RecipeError,
            r"^reward\.judges\.0\.architecture 'ViT-H-41' is neither an open_clip .*did you mean .*'ViT-H-14'",
        ),
        (
            {
                "reward__judges__0__options": {"verson": "2.0"},
                "reward__judges__0__runtime_env": {"env_vars": {"A": "1"}},
            },
            RecipeError,
            r"^reward\.judges\.0\.options\.verson",
        ),
        (
            {
                "evaluation__judges": [
                    {"name": "pick", "type": "pickscore", "checkpoint": "a/b", "architecture": "ViT-H-14"}
                ]
            },
            RecipeError,
            r"^evaluation\.judges\.0\.architecture 'ViT-H-14' is not taken by 'pickscore'",
        ),
        (
            {
                "evaluation__judges": [
                    {"name": "text", "type": "clip", "checkpoint": "a/b", "options": {"processor": "/x"}}
                ]
            },
            RecipeError,
            r"^evaluation\.judges\.0\.options\.processor '/x' is neither a folder nor a hub id",
        ),
        (
            {"reward__judges__0": {"name": "own", "type": f"{__name__}:Exact", "options": {"taget": 1}}},
            RecipeError,
            r"^reward\.judges\.0\.options\.taget is not an option of '.*:Exact'; did you mean 'target'\?",
        ),
        (
            {"reward__judges__0": {"name": "own", "type": f"{__name__}:Exact"}},
            RecipeError,
            r"^reward\.judges\.0\.options don't fit '.*:Exact', whose load\(\) says: missing a required .*'target'",
        ),
        (
            {"reward__judges__0": {"name": "own", "type": f"{__name__}:Narrow"}},
            RecipeError,
            r"^reward\.judges\.0\.type: '.*:Narrow', whose load\(\) must take resize= and dtype=, or \*\*options",
        ),
        (
            {"reward__judges__0": {"name": "own", "type": f"{__name__}:Faulty"}},
            RecipeError,
            r"^reward\.judges\.0\.type: check\(\) of '.*:Faulty' failed: KeyError\('a mistake'\)",
        ),
        (
            {"evaluation__features": {"type": "nothing:Here", "reference": "x"}},
            EvaluationError,
            r"^evaluation\.features\.type 'nothing:Here' can't be imported: No module .* beside the recipe",
        ),
        (
            {"evaluation__features": {"type": f"{__name__}:Featureless", "reference": "x"}},
            EvaluationError,
            r"^evaluation\.features\.type '.*:Featureless' lacks features\(\)",
        ),
        (
            {"evaluation__judges": [{"name": "other", "checkpoint": "gone.pt"}]},
            RecipeError,
            r"evaluation\.judges\.0\.checkpoint 'gone\.pt'",
        ),
    ],
)
def test_what_cannot_work_is_named(tiny_pipeline, tiny_judge, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"reward__judges__0__options": {"verson": "2.0"}},
        {"evaluation__features": {"type": "nothing:Here", "reference": "x"}},
    ],
)
def test_evaluation_refuses_the_same(tiny_pipeline, tiny_judge, tmp_path, change):
    with pytest.raises(UserError, match=r"options\.verson|features\.type"):
        compare.check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, **change), None)


def test_a_judge_without_gradient_may_report(tiny_pipeline, tiny_judge, tmp_path):
    judges = [{"name": "other", "type": f"{__name__}:Ungraded"}]
    check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, evaluation__judges=judges))


@pytest.mark.parametrize("objective", ["rwr", "ddpo"])
def test_a_judge_without_gradient_may_train_these(tiny_pipeline, tiny_judge, tmp_path, objective):
    changes = {"reward__judges__0__type": f"{__name__}:Ungraded", "training": {"objective": objective}}
    check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"editing": {"grad_steps": 13}}, r"editing\.strength 0\.6 x editing\.steps 20 runs 12 steps, fewer than"),
        ({"editing": {"grad_steps": 21}, "training": {"objective": "draft"}}, r"runs 20 steps, fewer than"),
        (
            {"editing": {"grad_steps": 2}, "training": {"objective": "draft", "draft": {"noisings": 2}}},
            r"training\.draft\.noisings 2 differentiates the last step alone; set editing\.grad_steps 2 to 1",
        ),
        (
            {"training": {"objective": "ddpo", "batch_size": 2, "ddpo": {"learned_steps": 21}}},
            r"training\.ddpo\.learned_steps 21 is more than the chain's editing\.steps 20; lower it",
        ),
        (
            {"training": {"objective": "ddpo", "batch_size": 1}},
            r"training\.objective 'ddpo' compares the samples of a step, but there is only one; raise",
        ),
        (
            {"training": {"objective": "rwr", "batch_size": 8, "samples_per_caption": 3}},
            r"training\.samples_per_caption 3 does not divide the 8 samples of a step",
        ),
        (
            {
                "training": {
                    "objective": "rwr",
                    "batch_size": 8,
                    "samples_per_caption": 8,
                    "rwr": {"samples": "data"},
                }
            },
            r"a step would have the same clip 8 times; set it to 1",
        ),
    ],
)
def test_options_that_do_not_fit_the_objective_are_refused(tiny_pipeline, tiny_judge, tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_with(tiny_pipeline, tiny_judge, tmp_path, **change)


def test_fp16_needs_a_stage_that_scales_the_loss(tiny_pipeline, tiny_judge, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.precision 'fp16' with training\.zero_stage 0"):
        recipe_with(tiny_pipeline, tiny_judge, tmp_path, training={"precision": "fp16", "zero_stage": 0})


def judge_in(folder: Path, **changes: Any) -> dict[str, Any]:
    files = {"checkpoint": str(folder / "judge.pt"), "architecture": str(folder / "open_clip_config.json")}
    return {"name": "other", **files} | changes


def test_weights_that_train_may_not_report(tiny_pipeline, tiny_judge, tmp_path):
    (tmp_path / "elsewhere").symlink_to(tiny_judge)
    for folder in (tiny_judge, tmp_path / "elsewhere"):
        recipe = recipe_with(
            tiny_pipeline, tiny_judge, tmp_path, evaluation__judges=[judge_in(folder, resize="bicubic")]
        )
        with pytest.raises(RecipeError, match=r"evaluation\.judges\.0: 'other' has the weights of 'judge'.*=true"):
            check(recipe)
        assert roles(recipe) == {"judge": "training", "other": "training"}


def test_unless_the_recipe_says_so(tiny_pipeline, tiny_judge, tmp_path):
    check(
        recipe_with(
            tiny_pipeline,
            tiny_judge,
            tmp_path,
            evaluation__judges=[judge_in(tiny_judge)],
            evaluation__allow_training_judges=True,
        )
    )


@pytest.mark.parametrize(
    ("train", "report", "same"),
    [
        ({"checkpoint": "xswu/HPSv2", "options": {"version": "2.0"}}, {"options": {"version": "2.0"}}, True),
        ({"checkpoint": "xswu/HPSv2", "options": {"version": "2.0"}}, {"options": {"version": "2.1"}}, False),
        ({"type": "pickscore", "checkpoint": "a/b"}, {"type": "clip"}, True),
        ({"type": "pickscore", "checkpoint": "a/b"}, {"checkpoint": "a/c"}, False),
        ({"type": f"{__name__}:Ungraded"}, {"dtype": "bf16"}, True),
        ({"type": f"{__name__}:Ungraded"}, {"options": {"target": 1}}, False),
    ],
)
def test_what_counts_as_the_same_weights(tiny_pipeline, tiny_judge, tmp_path, train, report, same):
    judges = {
        "reward__judges": [{"name": "judge", **train}],
        "evaluation__judges": [{**train, "name": "other", **report}],
    }
    recipe = recipe_with(tiny_pipeline, tiny_judge, tmp_path, **judges)
    assert ("other" in trained_on(recipe)) == same


def test_guards_that_could_tell_nothing_are_refused(tiny_pipeline, tiny_judge, tmp_path):
    (tmp_path / "some.txt").write_text("".join(f"cat {n}\n" for n in range(6)))
    rule = {"training": {"stop_rule": "rayvideo.training.overoptimisation:OverOptimised"}}
    sets = {"evaluation__sets": {"some": str(tmp_path / "some.txt")}, "evaluation__every": 10}

    def refused(kind: type[UserError], message: str, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            check(recipe_with(tiny_pipeline, tiny_judge, tmp_path, **changes))

    refused(RecipeError, r"goes by what guards find: set evaluation\.guards", **rule)
    refused(RecipeError, "list one under evaluation.judges", **rule, **sets, evaluation__guards=6)
    refused(EvaluationError, r"^evaluation\.guards 5: 5 captions .* need 6; raise it", **sets, evaluation__guards=5)
    refused(EvaluationError, "at least 4 frames", **sets, evaluation__guards=6, data__frames=2, reward__segments=2)
    with pytest.raises(RecipeError, match=r"evaluation\.guards needs evaluation\.every"):
        recipe_with(tiny_pipeline, tiny_judge, tmp_path, evaluation__guards=6)


def test_clips_without_captions_are_found_before_ray_starts(tiny_pipeline, tiny_judge, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    recipe = recipe_with(tiny_pipeline, tiny_judge, tmp_path, data__manifest=str(tmp_path / "clips"))
    for refuse in (check, latents.check):
        with pytest.raises(
            UserError, match=r"1 of 1 clips have no caption.*list\.txt is not read: name it as data\.man"
        ):
            refuse(recipe)
    assert not ray.is_initialized()


def finetune(recipe: Recipe, folder: Path, *overrides: str, resume: bool = False, overrule: bool = False) -> None:
    """The job, in this process."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    main = runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "finetune.py"))["main"]
    main(argparse.Namespace(recipe=str(file), overrides=overrides, resume=resume, overrule=overrule))


def test_a_run_that_could_not_be_kept_is_refused_before_ray_starts(tiny_pipeline, tiny_judge, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = {"run_name": "first"}
    recipe = recipe_with(tiny_pipeline, tiny_judge, tmp_path, tracking=tracking, storage=str(tmp_path / "runs"))
    running = ray.is_initialized()
    with pytest.raises(RecipeError, match=r"^tracking\.uri 'localhost:5000' is no address"):
        finetune(recipe, tmp_path, "tracking.uri=localhost:5000")
    with pytest.raises(TrackingError, match=r"^http://127\.0\.0\.1:9: experiment 'rayvideo' can't be opened: nobody"):
        finetune(recipe, tmp_path, "tracking.uri=http://me:secret@127.0.0.1:9")
    with pytest.raises(RecipeError, match="'first': no such run in .* to resume"):
        finetune(recipe, tmp_path, resume=True)
    with pytest.raises(RecipeError, match="^--overrule goes on with a run that its stop rule ended: give --resume"):
        finetune(recipe, tmp_path, overrule=True)
    with pytest.raises(RecipeError, match="^--overrule: training.stop_rule is not set"):
        finetune(recipe, tmp_path, resume=True, overrule=True)
    stop = ("training.stop_rule=tests.training.test_stop_rule:Patience", "training.stop_options={patienc: 2}")
    with pytest.raises(RecipeError, match=r"^training\.stop_options\.patienc is not .* did you mean 'patience'"):
        finetune(recipe, tmp_path, *stop)
    assert not (tmp_path / "runs").exists()
    write_recipe(recipe)
    with pytest.raises(RecipeError, match="'first': this run exists in"):
        finetune(recipe, tmp_path)
    assert ray.is_initialized() == running
    assert [file.name for file in (tmp_path / "runs").rglob("*")] == ["first", "recipe.yaml"]
