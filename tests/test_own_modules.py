"""Classes beside a recipe are found by name, here and in a worker's process, and hide nothing that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayvideo import own_modules, worker_path

ROOT = Path(__file__).parents[1]
DRIVER = """
import importlib.util, json, subprocess, sys
from rayvideo import own_modules
from rayvideo.recipe import load_recipe

recipe = load_recipe(sys.argv[1])
own_modules.make_importable(recipe, sys.argv[1])
names = [recipe.model.family, *(judge.type for judge in recipe.reward.judges), recipe.training.stop_rule]
found = [own_modules.resolve_name(name).WHERE for name in names]
worker = "import sys; from rayvideo import own_modules as o; print(*[o.resolve_name(n).WHERE for n in sys.argv[1:]])"
there = subprocess.run([sys.executable, "-c", worker, *names], cwd="/", capture_output=True, text=True, check=True)
libraries = {name: importlib.util.find_spec(name) is not None for name in ("wandb", "clips")}
import statistics
places = {name: str(place) for name, place in own_modules.places().items()}
told = {"here": found, "there": there.stdout, "libraries": libraries, "statistics": statistics.__file__}
print(json.dumps(told | {"places": places}))
"""


def recipe_naming(*types: str, rule: str | None = None) -> dict[str, Any]:
    judges = [{"name": f"judge{number}", "type": kind} for number, kind in enumerate(types)]
    other = {"model": {"path": "m", "family": "family:Own"}, "data": {"manifest": "list.txt"}}
    return {**other, "training": {"stop_rule": rule}, "reward": {"judges": judges}}


def test_modules_beside_the_recipe_and_in_the_current_folder(tmp_path: Path) -> None:
    beside = tmp_path / "my recipes"
    for name in ("package", "clips"):
        (beside / name).mkdir(parents=True)
    where = "class Own:\n    WHERE = __file__\n"
    (beside / "mine.py").write_text(
        f"import statistics, helper\ntry:\n    import clips\nexcept ImportError: pass\n{where}"
    )
    (tmp_path / "mine.py").write_text("raise RuntimeError('the one beside the recipe comes first')")
    (tmp_path / "helper.py").write_text("def late():\n    import later\n")
    (beside / "later.py").write_text("")
    (beside / "family.py").write_text(where)
    (beside / "package" / "__init__.py").write_text("")
    (beside / "package" / "inner.py").write_text(f"from . import __name__\n{where}")
    (tmp_path / "elsewhere.py").write_text(where)
    (tmp_path / "here.py").symlink_to("elsewhere.py")
    for name in ("wandb.py", "statistics.py"):
        (tmp_path / name).write_text("raise RuntimeError('nobody asked for it')")
    (beside / "recipe.yaml").write_text(yaml.safe_dump(recipe_naming("mine:Own", "package.inner:Own", rule="here:Own")))
    (beside / "clips" / "driver.py").write_text(DRIVER)

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "my recipes/clips/driver.py", "my recipes/recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    places = [beside / "family.py", beside / "mine.py", beside / "package" / "inner.py", tmp_path / "here.py"]
    assert told["here"] == list(map(str, places))
    assert told["there"].strip() == " ".join(map(str, places))
    assert told["libraries"] == {"wandb": False, "clips": False}
    assert not told["statistics"].startswith(str(tmp_path))
    # A plain folder that only happens to be called as what a module asks for may hold anything.
    assert told["places"] == {
        "family": str(beside / "family.py"),
        "mine": str(beside / "mine.py"),
        "helper": str(tmp_path / "helper.py"),
        "later": str(beside / "later.py"),
        "package": str(beside / "package"),
        "here": str(tmp_path / "here.py"),
    }


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `faulty_module` that is this process's own."""
    file = tmp_path / "faulty_module.py"
    monkeypatch.setenv(own_modules.PLACES, json.dumps({"faulty_module": str(file)}))
    monkeypatch.delitem(sys.modules, "faulty_module", raising=False)
    return file


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import torch\n1 / 0\n", r"^ZeroDivisionError: division by zero \(.*faulty_module\.py, line 2\)$"),
        ("import torch\nclass Own(:\n", r"^SyntaxError: .*\(faulty_module\.py, line 2\)$"),
        ("import no_such_thing\n", r"^No module named 'no_such_thing'$"),
        ("", r"^module 'faulty_module' has no attribute 'Own'$"),
    ],
)
def test_a_mistake_in_it_is_told_in_a_line(own: Path, code: str, message: str) -> None:
    own.write_text(code)
    with pytest.raises(ImportError, match=message):
        own_modules.resolve_name("faulty_module:Own")


def test_what_is_nowhere_is_told_with_where_it_may_be() -> None:
    with pytest.raises(ImportError, match=r"^No module named 'nowhere_at_all'; a module of yours must lie beside"):
        own_modules.resolve_name("nowhere_at_all:Own")


def test_a_cluster_is_sent_single_files_beside_what_the_job_sends(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ROOT / "rayvideo"
    assert worker_path.runtime_env([package]) == {"py_modules": [str(package), str(own)]}
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")
    monkeypatch.setenv(worker_path.JOB, json.dumps({"runtime_env": {"py_modules": ["gcs://a.zip"]}}))
    assert worker_path.runtime_env() == {"py_modules": ["gcs://a.zip", str(own)]}
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"
    monkeypatch.delenv(own_modules.PLACES)
    assert worker_path.runtime_env() == {}
