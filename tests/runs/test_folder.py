"""A run's name belongs to one run, and a resumed run is the one that was begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayvideo.errors import RecipeError
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.runs import folder as runs
from rayvideo.tracking import RunRef


def recipe_in(storage: Path, **sections: Any) -> Recipe:
    tree = {
        "model": {"path": "model"},
        "data": {"manifest": "list.txt"},
        "reward": {"judges": [{"name": "judge"}]},
        "tracking": {"run_name": "first"},
        "storage": str(storage),
    }
    return parse_recipe(tree | sections)


def test_a_run_without_a_name_gets_one(tmp_path):
    recipe = runs.named(recipe_in(tmp_path, tracking={}))
    assert recipe.tracking.run_name
    assert runs.named(recipe) == recipe
    assert runs.folder_of(recipe) == str(tmp_path / recipe.tracking.run_name)


def test_the_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.folder_of(recipe_in(Path("runs"))) == str(tmp_path / "runs" / "first")
    in_bucket = recipe_in(tmp_path).model_copy(update={"storage": "s3://bucket/runs"})
    assert runs.folder_of(in_bucket) == "s3://bucket/runs/first"


def test_a_taken_name_is_refused(tmp_path):
    recipe = recipe_in(tmp_path)
    runs.refuse_taken(recipe)
    runs.write_recipe(recipe)
    with pytest.raises(RecipeError, match=r"run_name 'first': this run exists .*--resume\) or choose another name"):
        runs.refuse_taken(recipe)


def begin(recipe: Recipe) -> None:
    runs.write_recipe(recipe)
    runs.write_run(runs.folder_of(recipe), RunRef("sqlite:///mlflow.db", "1", "abc"))


def test_only_a_run_that_was_begun_can_be_resumed(tmp_path):
    recipe = recipe_in(tmp_path)
    with pytest.raises(RecipeError, match="'first': no such run in .* to resume; start it without --resume, or"):
        runs.begun(recipe)
    runs.write_recipe(recipe)
    with pytest.raises(RecipeError, match="'first' has nothing to resume from; remove .* or choose another name"):
        runs.begun(recipe)
    begin(recipe)
    assert runs.begun(recipe) == "abc"
    Path(runs.folder_of(recipe), "recipe.yaml").write_text("model: {path: [")
    with pytest.raises(RecipeError, match=r"(?s)recipe.yaml can't be read: .* put the recipe .* in its place"):
        runs.begun(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"lr": 0.5}}, r"training\.lr: run 'first' was begun with 1e-05, .* resumed with 0\.5"),
        ({"training": {"accumulation": 2}}, r"training\.accumulation: .* with 1, .* with 2"),
        ({"reward": {"judges": [{"name": "other"}]}}, r"reward\.judges\.0\.name: .* with 'judge', .* with 'other'"),
        (
            {"reward": {"judges": [{"name": "judge"}, {"name": "b"}]}},
            r"reward\.judges\.1\.architecture: .* without it, .* with None",
        ),
    ],
)
def test_another_recipe_is_refused(tmp_path, change, message):
    begin(recipe_in(tmp_path))
    with pytest.raises(RecipeError, match=message):
        runs.begun(recipe_in(tmp_path, **change))


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"k@": 1, "k#": 2}, {"k@": 1, "k#": 3}, r"options\.k#: .* with 2, .* with 3"),  # one name in MLflow
        ({"k@": 1, "k#": 2}, {"k@": 2, "k#": 1}, r"options\.k#: .* with 2, .* with 1"),
        ({"a": {"b": 1}}, {"a.b": 1}, r'options\."a\.b": .* without it, .* with 1'),
        ({"k": None}, {}, r"options: .* without it, .* with \{\}"),
        ({"k": 1}, {"k": True}, r"options\.k: .* with 1, .* with True"),
        ({"k": 1}, {"k": 1}, None),
    ],
)
def test_options_of_judges_are_compared_as_they_are(tmp_path, then, now, message):
    begin(recipe_in(tmp_path, reward={"judges": [{"name": "judge", "options": then}]}))
    changed = recipe_in(tmp_path, reward={"judges": [{"name": "judge", "options": now}]})
    if message is None:
        assert runs.begun(changed) == "abc"
        return
    with pytest.raises(RecipeError, match=message):
        runs.begun(changed)


def test_the_folder_shows_no_login(tmp_path):
    tracking = {"run_name": "first", "uri": "http://me:secret@server:5000"}
    recipe = recipe_in(tmp_path, tracking=tracking)
    runs.write_recipe(recipe)
    runs.write_run(runs.folder_of(recipe), RunRef(tracking["uri"], "1", "abc"))
    written = [file.read_text() for file in Path(runs.folder_of(recipe)).iterdir()]
    assert len(written) == 2
    assert all("http://server:5000" in text and "secret" not in text for text in written)
    assert runs.begun(recipe) == "abc"


def test_what_does_not_change_the_numbers_may_change(tmp_path):
    begin(recipe_in(tmp_path))
    changed = {
        "training": {"steps": 7, "max_failures": 0, "keep_best": "reward", "workers": 2},
        "evaluation": {"previews": 9},
    }
    assert runs.begun(recipe_in(tmp_path, **changed)) == "abc"


def test_figures_are_means_of_the_ends():
    lines = [
        {
            "step": step,
            "reward": step,
            "score/judge": 2 * step,
            "gradient_norm": 1.0,
            "saturation": 0.5,
            "clipped": float(step > 15),
            "seconds/step": 0.25,
        }
        for step in range(1, 21)
    ]
    figures = runs.figures(lines, ["judge"])
    assert figures["window"] == 10
    assert runs.figures(lines[:5], ["judge"])["reward"] == {"first": 1.5, "last": 4.5}  # of two steps each
    assert figures["reward"] == {"first": 5.5, "last": 15.5}
    assert figures["scores"] == {"judge": {"first": 11, "last": 31}}
    assert figures["clipped"] == 0.25
    assert figures["seconds_per_step"] == {"step": 0.25}


def test_summaries_keep_what_other_jobs_wrote(tmp_path):
    runs.write_summary(str(tmp_path), {"sets": 1, "finished": False})
    runs.write_summary(str(tmp_path), {"finished": True})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"sets": 1, "finished": True}


def test_a_garbled_summary_is_written_anew(tmp_path, caplog):
    (tmp_path / "summary.json").write_text('{"finished": fal')
    runs.write_summary(str(tmp_path), {"finished": True})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"finished": True}
    assert "summary.json can't be read, and is written anew" in caplog.text


def test_what_the_recipe_leaves_open_is_as_the_run_was_begun(tmp_path):
    begin(recipe_in(tmp_path, editing={"offset_noise": 0.1}, training={"precision": "bf16"}))
    now = recipe_in(tmp_path)
    assert (now.editing.offset_noise, now.training.precision) == (None, "auto")
    assert runs.begun(now) == "abc"
    resumed = runs.as_begun(now)
    assert (resumed.editing.offset_noise, resumed.training.precision) == (0.1, "bf16")
    with pytest.raises(RecipeError, match=r"editing\.offset_noise: run 'first' was begun with 0\.1"):
        runs.begun(recipe_in(tmp_path, editing={"offset_noise": 0.2}))
