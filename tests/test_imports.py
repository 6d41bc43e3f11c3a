"""Imports go down only, as docs/how-it-works.md draws it, and the core stays usable without the cluster's libraries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rayvideo"
PAGE = ROOT / "docs" / "how-it-works.md"

LAYERS = (
    ("cli", "command"),
    ("doctor",),
    ("planning",),
    ("sweep",),
    ("training",),
    ("evaluation",),
    ("settling",),
    ("connection",),
    ("capacity", "runs", "worker_path"),
    ("tracking",),
    ("data", "serving"),
    ("models", "rewards"),
    ("rollout",),
    ("editing",),
    ("schedules",),
    ("own_modules",),
    ("recipe",),
    ("overrides", "precision"),
    ("sections",),
    ("paths", "staging", "storage", "weights"),
    ("errors", "importing", "locking", "progress", "seeding"),
)
"""The files and folders of rayvideo/, the highest first: each imports from lower lines only, never from its own."""

APART = "menagerie"
"""Imports from where it likes, and is imported by itself and benchmarks only; recipes name its classes."""

ONLY = {("data", "models"): {"rayvideo.models", "rayvideo.models.base"}}
"""Importer and imported -> the modules that it may see: data encodes clips with what every family offers."""

UP = {("rayvideo/recipe.py", "rayvideo.training.objectives")}
"""The one climb: each objective brings its options along, as a section of the recipe. See `OBJECTIVES`."""

CORE = ("models", "rewards", "rollout", "editing", "schedules")
"""These, and all that they may import, know no `CLUSTER` libraries."""

CLUSTER = ("ray", "deepspeed", "mlflow")

ROOMS = {
    "mlflow": ("tracking",),
    "deepspeed": ("training",),
    "ray.train": ("training",),
    "ray.train.v2": ("training/ray_train",),
    "ray.tune": ("sweep",),
}
"""Libraries, and the only rooms that import them; Ray Train's internals are below `ray.train.v2`."""


class Import(NamedTuple):
    file: str
    """Relative to the repository."""
    line: int
    module: str

    @property
    def room(self) -> str:
        """The file or folder of rayvideo/ that imports."""
        return Path(self.file).parts[1].removesuffix(".py")

    @property
    def target(self) -> str | None:
        """The file or folder of rayvideo/ that is imported; None for a library."""
        package, _, rest = self.module.partition(".")
        return rest.partition(".")[0] or None if package == "rayvideo" else None

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


@cache
def imports(folder: str) -> list[Import]:
    """Every import in a folder's files, those inside functions too."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return [found for file in files for found in imports_of(file.read_text(encoding="utf-8"), file.relative_to(ROOT))]


def imports_of(text: str, file: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            names = [_module_of(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        yield from (Import(str(file), node.lineno, name) for name in dict.fromkeys(names))


def _module_of(package: str, name: str) -> str:
    """The module that `from package import name` reads: `name` itself, where that is a module of ours."""
    place = ROOT / package.replace(".", "/") / name
    return f"{package}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else package


def of(found: Import, library: str) -> bool:
    return f"{found.module}.".startswith(f"{library}.")


HEIGHT = {name: len(LAYERS) - number for number, names in enumerate(LAYERS) for name in names}


def climbs(found: Import) -> bool:
    """Whether an import of one part of the package by another does not go down."""
    if found.target in (None, found.room) or found.room == APART:
        return False
    if found.target == APART:
        return True
    if (found.file, found.module) in UP:
        return False
    return HEIGHT[found.target or ""] >= HEIGHT[found.room]


def test_every_part_has_its_place() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith(("__", "."))}
    placed = [name for names in LAYERS for name in names]
    assert sorted([*placed, APART]) == sorted(parts)


def test_imports_go_down_only() -> None:
    assert [str(found) for found in imports("rayvideo") if found.room != "__init__" and climbs(found)] == []


@pytest.mark.parametrize(
    ("line", "up"),
    [
        ("import rayvideo.training.loop", True),
        ("from rayvideo import tracking", True),
        ("from rayvideo.serving.pool import RewardPool", True),
        ("def f():\n    from rayvideo.menagerie import world", True),
        ("from rayvideo.rewards import Reward", False),
        ("from rayvideo.serving import wire", True),
        ("from rayvideo.data import manifest", False),
        ("from rayvideo.models import lora", False),
        ("import torch", False),
    ],
)
def test_a_climb_is_seen(line: str, up: bool) -> None:
    (found,) = imports_of(line, Path("rayvideo/data/latents.py"))
    assert climbs(found) == up


def test_some_see_no_more_of_others_than_they_need() -> None:
    seen = [
        str(found)
        for found in imports("rayvideo")
        if found.target and found.module not in ONLY.get((found.room, found.target), {found.module})
    ]
    assert seen == []


def test_a_module_imported_from_its_package_is_seen() -> None:
    line = "from rayvideo.models import lora, load_model"
    found = [one.module for one in imports_of(line, Path("rayvideo/data/latents.py"))]
    assert found == ["rayvideo.models.lora", "rayvideo.models"]


def test_the_menagerie_is_nobodys_part() -> None:
    assert [str(found) for found in imports("jobs") if found.target == APART] == []


def test_libraries_stay_in_their_rooms() -> None:
    strayed = [
        str(found)
        for library, rooms in ROOMS.items()
        for found in imports("rayvideo") + imports("jobs")
        if of(found, library) and not any(found.file.startswith(f"rayvideo/{room}/") for room in rooms)
    ]
    assert strayed == []


def test_the_core_names_no_library_of_the_cluster() -> None:
    """Not even inside functions; that it can be imported without them is the next test."""
    lowest = min(HEIGHT[name] for name in CORE)
    core = {*CORE, *(name for name, height in HEIGHT.items() if height < lowest)}
    named = [str(i) for i in imports("rayvideo") if i.room in core and any(of(i, library) for library in CLUSTER)]
    assert named == []


def test_how_it_works_draws_the_same_order_and_lists_every_part() -> None:
    page = PAGE.read_text(encoding="utf-8")
    (order,) = re.findall(r"^Imports go down only.*?^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [tuple(line.split()) for line in order.splitlines()] == [*LAYERS]
    (tree,) = re.findall(r"^```\nrayvideo/\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^  (\w+)(?:\.py|/) ", tree, re.MULTILINE)
    assert sorted(listed) == sorted([APART, *(name for names in LAYERS for name in names)])


OBJECTIVES = ("objective", "pathwise", "sampled", "objectives", "guards", "meters")
"""Of training/: what a recipe imports with the objectives' options, and so no more than it may need."""


def test_objectives_do_without_the_cluster_and_the_recipe() -> None:
    """When they are imported, the recipe is not made yet; what they only name in annotations does not count."""
    loaded = subprocess.run([sys.executable, "-c", IMPORT_OBJECTIVES], capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) == set(OBJECTIVES)


IMPORT_OBJECTIVES = """
import sys
for blocked in ("ray", "deepspeed", "mlflow", "rayvideo.recipe", "rayvideo.data"):
    sys.modules[blocked] = None
from rayvideo.training import objectives
for name in objectives.names():
    objectives.resolve(name)
print(*{name.split(".")[2] for name in sys.modules if name.startswith("rayvideo.training.")})
"""

IMPORT_CORE = """
import importlib, pkgutil, sys
for blocked in ("ray", "deepspeed", "mlflow"):
    sys.modules[blocked] = None
import rayvideo.models, rayvideo.rewards, rayvideo.schedules
names = ["rayvideo.recipe", "rayvideo.editing", "rayvideo.precision", "rayvideo.seeding"]
for package in (rayvideo.models, rayvideo.rewards, rayvideo.schedules):
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(*names)
"""


def test_the_core_imports_without_ray_deepspeed_and_mlflow() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_CORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"rayvideo.models.modelscope", "rayvideo.models.lora", "rayvideo.rewards.hpsv2"} <= set(done.stdout.split())


CONTROLLER = """
import sys
import rayvideo.training.ray_train.failures, rayvideo.training.ray_train.preemption
import rayvideo.training.ray_train.retention, rayvideo.training.ray_train.work
print(*{"torch", "transformers", "peft", "mlflow"} & set(sys.modules))
"""


def test_what_ray_trains_controller_imports_is_light() -> None:
    """It starts ahead of the workers, which wait for it."""
    done = subprocess.run([sys.executable, "-c", CONTROLLER], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


ENCODERS = """
import sys
import rayvideo.data.encoders, rayvideo.serving.actor, rayvideo.serving.router
print(*{"torch", "transformers", "diffusers", "ray.data"} & set(sys.modules))
"""


def test_actors_that_load_models_import_libraries_when_they_are_made() -> None:
    """Quickly, that is; unpickling the class would do it with Python's collector at work."""
    done = subprocess.run([sys.executable, "-c", ENCODERS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
