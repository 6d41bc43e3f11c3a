"""Every committed recipe parses, and the paper's ones hold the paper's values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rayvideo.errors import RecipeError
from rayvideo.evaluation.heldout import check_held_out
from rayvideo.recipe import flatten, load_recipe, parse_recipe

FOLDER = Path(__file__).parents[1] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = ("modelscope-1.7b.yaml", "vgen-release.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_committed_recipe_parses_and_says_how_far_it_is_verified(path):
    check_held_out(load_recipe(path))
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nmodel:")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert any(word in header.lower() for word in ("verified", "not run"))


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_recipes_hold_the_paper_values(name):
    recipe = load_recipe(FOLDER / name)
    editing, reward, training, data = recipe.editing, recipe.reward, recipe.training, recipe.data
    assert (editing.strength, editing.steps, editing.grad_steps) == (0.6, 20, 1)
    assert (editing.guidance, editing.offset_noise) == (3.0, 0.1)
    assert (reward.segments, reward.attenuation) == (4, 1.0)
    assert [(judge.type, judge.architecture, judge.resize) for judge in reward.judges] == [
        ("hpsv2", "ViT-H-14", "bilinear")
    ]
    assert (recipe.model.lora.rank, recipe.model.lora.alpha) == (4, 4.0)
    assert recipe.model.lora.targets == ("to_q", "to_k", "to_v", "to_out.0")
    assert (training.lr, training.weight_decay, training.betas, training.eps) == (1e-5, 0.0, (0.9, 0.999), 1e-8)
    assert (training.warmup_steps, training.steps, training.max_grad_norm) == (10, 20_000, 0.0)
    assert (training.workers.max, training.batch_size, training.accumulation) == (4, 2, 1)
    assert (data.frames, data.fps, data.height, data.width) == (16, 8.0, 256, 256)
    assert (recipe.evaluation.steps, recipe.evaluation.guidance) == ((20, 50), 3.0)
    assert list(recipe.evaluation.sets) == ["in_domain", "new", "non"]
    assert [(judge.type, judge.resize) for judge in recipe.evaluation.judges] == [
        ("hpsv2", "bicubic"),
        ("clip", "bicubic"),
    ]
    # Everything fits on four GPUs: a worker on each, and beside them the judges.
    judges = sum(judge.num_gpus for judge in (*reward.judges, *recipe.evaluation.judges))
    assert training.workers.max * training.gpus_per_worker + judges <= 4
    assert recipe.evaluation.workers * recipe.evaluation.gpus_per_worker + judges <= 4


def test_the_paper_recipes_differ_in_the_model_alone():
    first, second = (yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in PAPER)
    assert first["model"].pop("path") != second["model"].pop("path")
    assert first == second


@pytest.mark.parametrize(
    ("overrides", "bounds", "written"),
    [
        (["training.workers=3"], (3, 3), 3),
        (["training.workers.max=4"], (1, 4), {"min": 1, "max": 4, "check_every_s": 60.0}),
        (["training.workers.min=2", "training.workers.max=4"], (2, 4), {"min": 2, "max": 4, "check_every_s": 60.0}),
        (["training.workers={min: 4, max: 4}"], (4, 4), 4),
    ],
)
def test_workers_are_a_number_or_bounds(overrides, bounds, written):
    recipe = load_recipe(FOLDER / "menagerie.yaml", overrides)
    assert (recipe.training.workers.min, recipe.training.workers.max) == bounds
    tree = recipe.model_dump(mode="json")
    assert tree["training"]["workers"] == written
    assert parse_recipe(tree) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.workers=0", "training.workers: 0 is not allowed: at least 1"),
        ("training.workers=true", r"training.workers: True is not allowed: a number, or \{min: 1, max: 4\}"),
        ("training.workers=many", "training.workers: 'many' is not allowed"),
        ("training.workers.min=2", "training.workers.max: required, but not set"),
        ("training.workers.most=2", "no such option 'most'.* Allowed: min, max"),
        ("training.workers={min: 3, max: 2}", "training.workers.min 3 is more than training.workers.max 2"),
    ],
)
def test_workers_that_make_no_sense_are_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(FOLDER / "menagerie.yaml", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.shift=0"], r"model\.shift: 0(\.0)? is not allowed: .* greater than 0"),
        (
            ["editing.strength=0.3", "editing.start_sigma=0.6"],
            r"editing\.start_sigma 0\.6 and editing\.strength 0\.3 both say where the chain starts; set",
        ),
        (["editing.start_sigma=1.5"], r"editing\.start_sigma: 1\.5 is not allowed: .* less than or equal to 1"),
        (
            ["editing.strength=0.01", "editing.steps=20"],
            r"editing\.steps 20 runs 0 steps, fewer than editing\.grad_steps 1; raise strength to 0\.05",
        ),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(FOLDER / "modelscope-1.7b.yaml", overrides)


def test_what_is_best_is_said_by_its_measure():
    file = FOLDER / "menagerie-demo.yaml"
    assert load_recipe(file).training.keep_best is None
    assert load_recipe(file, ["training.keep_best=reward"]).training.keep_best == "reward"
    for earlier, now in {"false": None, "true": "reward", "null": None}.items():
        assert load_recipe(file, [f"training.keep_best={earlier}"]).training.keep_best == now
    tree = load_recipe(file).model_dump(mode="json")
    for written, now in {False: None, True: "reward"}.items():
        assert parse_recipe(tree | {"training": tree["training"] | {"keep_best": written}}).training.keep_best == now


def test_a_flat_recipe_has_one_key_for_each_value() -> None:
    tree = {
        "lora": {"rank": 4, "targets": ["to_q", "to_k"]},
        "judges": [{"options": {"a": {"b": 1}, "a.b": 2, "c": {}}}],
    }
    assert flatten(tree) == {
        "lora.rank": 4,
        "lora.targets": ["to_q", "to_k"],
        "judges.0.options.a.b": 1,
        'judges.0.options."a.b"': 2,
        "judges.0.options.c": {},
    }
