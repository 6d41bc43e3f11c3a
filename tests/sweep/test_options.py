"""What a sweep varies: how it is written, what comes of it, and what is refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from rayvideo.errors import RecipeError
from rayvideo.recipe import load_recipe
from rayvideo.sweep.options import load_sweep
from rayvideo.sweep.run import best, outcomes, plan

ROOT = Path(__file__).parents[2]
MENAGERIE = str(ROOT / "jobs" / "recipes" / "menagerie.yaml")
NAMED = ["tracking.run_name=wide", "evaluation.every=25"]


def test_lists_are_combined_and_ranges_are_drawn_from():
    sweep = load_sweep(
        None,
        ["training.lr={min: 1e-5, max: 1e-3, log: true}", "editing.strength=[0.4,0.6]", "editing.grad_steps=[1,2]"],
        samples=2,
    )
    trials = sweep.trials()
    assert [own[1:] for own in trials] == [
        [f"editing.strength={strength}", f"editing.grad_steps={steps}"]
        for strength in (0.4, 0.6)
        for steps in (1, 2)
        for _ in range(2)
    ]
    drawn = [float(own[0].removeprefix("training.lr=")) for own in trials]
    assert len(set(drawn)) == len(drawn)
    assert all(1e-5 <= lr <= 1e-3 for lr in drawn)
    assert sum(lr < 1e-4 for lr in drawn) >= 2, "orders of magnitude are not equally likely"
    assert sweep.trials() == trials, "the same command would make other trials"
    assert load_sweep(None, ["training.lr={min: 1e-5, max: 1e-3}"], samples=4).trials() != trials


def test_whole_bounds_draw_whole_numbers():
    sweep = load_sweep(None, ["editing.grad_steps={min: 1, max: 3}"], samples=30)
    assert {text for (text,) in sweep.trials()} == {f"editing.grad_steps={n}" for n in (1, 2, 3)}


def test_what_is_typed_takes_the_place_of_the_files_line(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("vary:\n  training.lr: [1e-4, 1e-3]\n  seed: [0, 1]\nkeep: 2\nsamples: 3\n")
    sweep = load_sweep(str(file), ["training.lr=[1e-5]"], samples=1, concurrent=None)
    assert sweep.trials() == [["training.lr=1e-05", "seed=0"], ["training.lr=1e-05", "seed=1"]]
    assert (sweep.keep, sweep.concurrent) == (2, 1)


def test_options_may_be_varied_together_and_texts_stand_as_they_are():
    typed = ["training=[{lr: 1e-4, steps: 50}, {lr: 1e-3, steps: 25}]", "reward.judges.0.resize=[bilinear,bicubic]"]
    _, trials = plan(MENAGERIE, NAMED, load_sweep(None, typed))
    found = [(one.recipe.training.lr, one.recipe.training.steps, one.recipe.reward.judges[0].resize) for one in trials]
    assert found == [(1e-4, 50, "bilinear"), (1e-4, 50, "bicubic"), (1e-3, 25, "bilinear"), (1e-3, 25, "bicubic")]
    assert trials[0].recipe.training.batch_size == 2, "a section was replaced, not changed"


def test_the_committed_sweep_makes_trials_of_the_menagerie(tmp_path):
    sweep = load_sweep(str(ROOT / "jobs" / "sweeps" / "menagerie.yaml"))
    shared, trials = plan(MENAGERIE, [*NAMED, f"storage={tmp_path}"], sweep)
    assert [one.name for one in trials] == [f"wide-{number:02d}" for number in range(12)]
    assert len({json.dumps(one.tree, sort_keys=True) for one in trials}) == 12
    assert trials[0].metrics == [f"2-held-out/preview.{name}.held_out" for name in ("in_domain", "new", "non")]
    assert shared.evaluation.judge_previews
    assert load_recipe(MENAGERIE, trials[3].typed) == trials[3].recipe, "finetune would be typed another run"
    found = outcomes(trials)
    assert {(one["status"], one["score"]) for one in found} == {("open", None)}
    assert best(found) is None
    assert not list(tmp_path.iterdir()), "a plan wrote something"


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["training.lr=1e-4"], "--vary 'training.lr=1e-4' is neither of the form key=\\[a,b\\]"),
        (["training.lr"], "--vary 'training.lr' is neither"),
        (["training.lr=[]"], "vary.training.lr"),
        (["training.lr={min: 2, max: 1}"], "2 to 1 is no range"),
        (["training.lr={min: 0, max: 1, log: true}"], "0 to 1 is no range of logarithms"),
        (["training.lr={min: 1e-4, most: 1}"], "vary.training.lr"),
        ([], "needs something to vary"),
        (["training.lrr=[1]"], "did you mean 'lr'"),
        (["training.lr=[1e-4, -1]"], "training.lr=-1"),
    ],
)
def test_what_makes_no_trials_is_refused(vary, said):
    with pytest.raises(RecipeError, match=said):
        plan(MENAGERIE, NAMED, load_sweep(None, vary))


def test_a_sweep_needs_a_name_a_judge_and_something_to_judge(tmp_path):
    sweep = load_sweep(None, ["training.lr=[1e-4,1e-3]"])
    with pytest.raises(RecipeError, match="tracking.run_name: a sweep needs a name"):
        plan(MENAGERIE, [], sweep)
    for every in (0, 101):
        with pytest.raises(RecipeError, match=f"evaluation.every {every}: .* allowed: 1 to 100"):
            plan(MENAGERIE, ["tracking.run_name=wide", f"evaluation.every={every}"], sweep)
    with pytest.raises(RecipeError, match="judge_previews: there is nothing to judge"):
        plan(MENAGERIE, [*NAMED, "evaluation.previews=0"], sweep)
    (tmp_path / "sweep.yaml").write_text("judge: nobody\nvary: {training.lr: [1.0]}\n")
    with pytest.raises(RecipeError, match="judge 'nobody' is not under evaluation.judges; there are: held_out, right"):
        plan(MENAGERIE, NAMED, load_sweep(str(tmp_path / "sweep.yaml")))


@pytest.mark.parametrize("text", ["vary: [1", "- a", "other: 1", "keep: 1"])
def test_a_sweep_that_is_none_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(RecipeError, match="sweep .*sweep.yaml"):
        load_sweep(str(tmp_path / "sweep.yaml"))


def test_a_dry_run_prints_the_trials_and_starts_nothing(tmp_path, monkeypatch, capsys):
    job = str(ROOT / "jobs" / "sweep.py")
    typed = ["--recipe", MENAGERIE, *NAMED, f"storage={tmp_path}", "--vary", "training.lr=[1e-4,3e-4]", "--dry-run"]
    monkeypatch.setattr("sys.argv", [job, *typed])
    runpy.run_path(job, run_name="__main__")
    printed = capsys.readouterr().out
    assert "training.lr" in printed
    assert all(text in printed for text in ("wide-0", "wide-1", "0.0001", "0.0003", "open"))
    assert not list(tmp_path.iterdir())
