"""What is typed for a text is that text; what is wrong with an override is said of the override."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayvideo.errors import RecipeError
from rayvideo.recipe import load_recipe, parse_recipe

BASE = "model: {path: m}\ndata: {manifest: clips.txt}\nreward: {judges: [{name: judge}]}\nevaluation: {sets: {a: x}}\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(BASE)
    return tmp_path / "recipe.yaml"


def value_of(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part)] if part.isdecimal() else tree[part]
    return tree


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.manifest=/data/a #1/list.csv", "/data/a #1/list.csv"),
        ("data.manifest=[set] list.csv", "[set] list.csv"),
        ("data.manifest={set}: list.csv", "{set}: list.csv"),
        ("data.manifest= a: b ", " a: b "),
        ("data.manifest='quoted'", "'quoted'"),
        ("data.manifest=a=b", "a=b"),
        ("data.manifest=50%", "50%"),
        ("tracking.run_name=20241128", "20241128"),
        ("tracking.run_name=007", "007"),
        ("tracking.run_name=1e3", "1e3"),
        ("tracking.run_name=true", "true"),
        ("tracking.run_name=null", None),
        ("tracking.run_name=", None),
        ("tracking.experiment=null", "null"),
        ("evaluation.sets.new=12", "12"),
        ("evaluation.sets={new: b}", {"a": "x", "new": "b"}),  # beside what is there
        ("reward.judges.0.name=12", "12"),
        ("reward.judges.0.weight=2", 2.0),
        ("reward.judges.0.options={verson: '2.0', n: 2.0}", {"verson": "2.0", "n": 2.0}),
        ("reward.judges.0.options.version='2.0'", "2.0"),
        ("reward.judges.0.options.threshold=2.0", 2.0),
        ("model.lora.targets=[to_q, to_k]", ["to_q", "to_k"]),
        ("evaluation.steps=[20,50]", [20, 50]),
        ("evaluation.max_captions=null", None),
        ("training.precision=bf16", "bf16"),
        ("evaluation.allow_training_judges=false", False),
        ("training.lr=1e-4  # as in the paper", 1e-4),
    ],
)
def test_values(base: Path, override: str, value: Any) -> None:
    key = override.partition("=")[0]
    assert value_of(load_recipe(base, [override]).model_dump(mode="json"), key) == value


@pytest.mark.parametrize(
    ("typed", "reference"),
    [("/data/[a] #1.csv", "/data/[a] #1.csv"), ("{new: /r.csv}", {"new": "/r.csv"}), ("12", "12")],
)
def test_a_reference_is_text_unless_it_opens_as_a_mapping(base: Path, typed: str, reference: Any) -> None:
    overrides = ["evaluation.features.type=a:B", f"evaluation.features.reference={typed}"]
    features = load_recipe(base, overrides).evaluation.features
    assert features is not None
    assert features.reference == reference


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lr=fast", r"training\.lr: 'fast' is not allowed: Input should be a valid number"),
        ("training.lr=", r"training\.lr: None is not allowed"),
        ("training.lr=.inf", r"training\.lr: inf is not allowed"),
        ("training.lr=[1", "while parsing a flow sequence"),
        ("training.workers=0", "training.workers: 0 is not allowed: at least 1"),
        ("seed.x=1", r"seed: \{'x': 1\} is not allowed"),
        ("tracking.run_name=../up", r"tracking\.run_name: '\.\./up' is not allowed"),
        ("training.stesp=3", "no such option 'stesp'; did you mean 'steps'"),
        ("reward.judges.5.weight=1", "list index out of range"),
        ("reward.judges.0.weight=true", r"reward\.judges\.0\.weight: True is not allowed"),
        ("evaluation.sets={new: 12}", r"evaluation\.sets\.new: 12 is not allowed: .*; put it in quotes"),
        ("editing.grad_on=[0,x]", r"': editing\.grad_on\.1: 'x' is not allowed: Input should be a valid integer$"),
        ("storage=${HOME}", "a recipe fills nothing in"),
        ("nonsense", "is not of the form key=value"),
    ],
)
def test_what_is_wrong_is_said_of_the_override(base: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refusal:
        load_recipe(base, ["training.batch_size=3", override])
    told = str(refusal.value)
    assert told.startswith(f"override {override!r}")
    assert "\n" not in told
    assert str(base) not in told


@pytest.mark.parametrize("name", ["new", "str", "tuple[int, ...]", "[key]", "a.b"])
def test_a_key_is_named_as_it_stands_there(name: str) -> None:
    """Where an option may be of one of two types, the types are no part of it; but a set may be called like one."""
    evaluation = {"sets": {name: 3}, "features": {"type": "a:B", "reference": {name: 3}}}
    tree = {"model": {"path": "m"}, "data": {"manifest": "clips.txt"}, "reward": {"judges": [{"name": "judge"}]}}
    with pytest.raises(RecipeError) as refusal:
        parse_recipe({**tree, "editing": {"grad_on": "lst"}, "evaluation": evaluation})
    told = [line.partition(" is not allowed")[0] for line in str(refusal.value).splitlines()]
    keys = [f"evaluation.sets.{name}: 3", f"evaluation.features.reference.{name}: 3"]
    assert sorted(told) == sorted([*2 * ["editing.grad_on: 'lst'"], *keys])


def test_what_stands_in_the_file_is_said_of_the_file(base: Path) -> None:
    base.write_text(BASE + "tracking: {run_name: 20241128}\n")
    with pytest.raises(RecipeError, match=r"^tracking\.run_name: 20241128 is not allowed: .*; put it in quotes$"):
        load_recipe(base, ["training.lr=1"])
    assert load_recipe(base, ["tracking.run_name=20241128"]).tracking.run_name == "20241128"
