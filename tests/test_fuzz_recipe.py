"""Whatever stands in a recipe: a `Recipe`, or a `RecipeError` that says what is wrong; never anything else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayvideo.errors import RecipeError
from rayvideo.recipe import LONGEST_SHOWN, Recipe, load_recipe, parse_recipe

BASE = "model: {path: m}\ndata: {manifest: clips.txt}\nreward: {judges: [{name: judge}]}\n"
TREE = yaml.safe_load(BASE)
SECTIONS = ("model", "data", "editing", "reward", "training", "evaluation", "tracking")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**62),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "???", "${model.path}", "null", "1e3", "\0", "x" * 5000]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), st.booleans()), inner, max_size=3)
    ),
    max_leaves=6,
)


def keys(section: Any = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe."""
    found = []
    for name, field in section.model_fields.items():
        found.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found += keys(field.annotation, f"{prefix}{name}.")
    return [*found, "reward.judges.0.weight", "reward.judges.0.options", "evaluation.features.reference"]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def read(path: Path, *overrides: str) -> Recipe | None:
    """The recipe, None if it was refused with a message that can be read."""
    try:
        return load_recipe(path, overrides)
    except RecipeError as error:
        check_length(error)
        return None


def check_length(error: RecipeError) -> None:
    assert 0 < len(str(error)) < 20 * LONGEST_SHOWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("base"), BASE)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_file(folder: Path, content: str | bytes) -> None:
    assert read(written(folder, content)) is None


@settings(max_examples=300)
@given(st.sampled_from(sorted({*keys(), "nonsense"})), values)
def test_any_value_for_any_key(key: str, value: Any) -> None:
    """What is accepted comes back equal from its own dump, as YAML and as JSON."""
    *path, last = key.split(".")
    tree = {**TREE, **{name: dict(TREE.get(name, {})) for name in SECTIONS}, "reward": {"judges": [{"name": "judge"}]}}
    place: Any = tree
    for part in path:
        place = place[int(part)] if part.isdecimal() else place.setdefault(part, {})
    place[last] = value
    try:
        recipe = parse_recipe(tree)
    except RecipeError as error:
        check_length(error)
        return
    dumped = recipe.model_dump(mode="json")
    assert parse_recipe(dumped) == recipe
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(dumped, allow_unicode=True))) == recipe
    assert all(math.isfinite(number) for number in numbers(dumped))


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict | list):
        return [number for inner in (tree.values() if isinstance(tree, dict) else tree) for number in numbers(inner)]
    return [tree] if isinstance(tree, int | float) else []


@settings(max_examples=300)
@given(st.text(max_size=30) | st.tuples(st.sampled_from(keys()), st.text(max_size=20)).map("=".join))
def test_any_override(base: Path, override: str) -> None:
    read(base, override)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BASE + "seed: 1\nseed: 2\n", "duplicate key seed"),
        (BASE + "storage: ${oc.env:HOME}\n", "storage: .*fills nothing in"),
        (BASE + "evaluation: {sets: {a: '${oc.env:HOME}'}}\n", "evaluation.sets.a: .*fills nothing in"),
        (BASE + "evaluation: {sets: {1: b, '1': c}}\n", "Conflicting integer and string keys"),
        (BASE + "storage: ???\n", "storage: required"),
        (BASE + "seed: " + "9" * 5000, "can't be read"),
        (BASE + "seed: 0x" + "f" * 5000, "seed: a number of more than 64 bits"),
        (BASE + "training: {lr: .inf}", "training.lr: inf is not allowed"),
        (BASE.replace("name: judge", "name: judge, weight: .nan"), "reward.judges.0.weight: nan is not allowed"),
        (BASE + "training: {betas: [0.9, 1.0]}", "training.betas.1"),
        (BASE + "storage: !!binary aGk=", "storage: b'hi' is not allowed"),
        (BASE + "storage: !!python/object/apply:os.getcwd []", "can't be read"),
        (BASE + 'storage: "a\\0b"', "storage: .*zero bytes"),
        (BASE + "evaluation: {steps: [[1]]}", "evaluation.steps.0"),
        (BASE + "tracking: {run_name: ../up}", "tracking.run_name"),
        (BASE + "tracking: {run_name: " + "x" * 300 + "}", "tracking.run_name"),
        (BASE + "data: {frames: 1000000000000}", "duplicate key data"),
        (BASE.replace("clips.txt", "clips.txt, frames: 1000000000000"), "data.frames: 1000000000000 is not allowed"),
        (BASE.replace("name: judge", "name: judge, options: {a: " + "[" * 30 + "]" * 30 + "}"), "more than 20 deep"),
        ("x: " + "[" * 5000 + "]" * 5000, "can't be read"),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)), "can't be read"),
        ("a: &a [*a]\n" + BASE, "can't be read"),
        (BASE.encode("utf-16"), "can't be read"),
        ("- a\n- b\n", "not a mapping of sections"),
        ("3", "can't be read"),
        ("#" * 2**21, "is no recipe: it has 2097152 bytes"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(folder, content))


def test_a_key_that_is_number_and_text() -> None:
    with pytest.raises(RecipeError, match="evaluation.sets: a key stands there twice"):
        parse_recipe({**TREE, "evaluation": {"sets": {1: "a", "1": "b"}}})


def test_environment_variables_do_not_come_in_by_overrides(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for override in ("storage=${oc.env:SECRET}", "evaluation.sets={a: '${oc.env:SECRET}'}", "model.path='${seed}'"):
        with pytest.raises(RecipeError, match="fills nothing in") as error:
            load_recipe(base, [override])
        assert "hunter2" not in str(error.value)
