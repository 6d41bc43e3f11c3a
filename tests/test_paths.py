"""A leading ~ means a home wherever a path is typed, and nothing else in a path means anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from rayvideo import cli, command
from rayvideo.data.manifest import read_manifest
from rayvideo.errors import RecipeError
from rayvideo.paths import argument, expand
from rayvideo.recipe import Recipe, load_recipe, parse_recipe
from rayvideo.sections import Section

JUDGE = {"name": "judge", "checkpoint": "~/j.pt", "architecture": "~/a.json", "options": {"clip": "~/clip", "x": "~"}}
TREE = {
    "model": {"path": "~/model"},
    "data": {"manifest": "~/list.txt", "root": "~/clips"},
    "reward": {"judges": [JUDGE]},
    "evaluation": {
        "sets": {"new": "~/new.txt"},
        "judges": [{**JUDGE, "name": "other"}],
        "features": {"type": "a:B", "checkpoint": "~/f.pt", "reference": "~/r.txt"},
    },
    "storage": "~/runs",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def test_every_path_of_a_recipe_is_expanded(home: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(TREE))
    dumped = yaml.safe_dump(load_recipe(tmp_path / "r.yaml").model_dump(mode="json"))
    assert dumped.count(home) == 13
    assert "~/" not in dumped
    assert "x: '~'" in dumped
    assert parse_recipe(yaml.safe_load(dumped)) == load_recipe(tmp_path / "r.yaml")
    prepared = ["data.manifest=null", "data.root=null", "data.prepared=~/latents"]
    assert load_recipe(tmp_path / "r.yaml", prepared).data.prepared == f"{home}/latents"
    by_set = load_recipe(tmp_path / "r.yaml", ["evaluation.features.reference={new: ~/new.txt}"])
    assert by_set.evaluation.features is not None
    assert by_set.evaluation.features.reference == {"new": f"{home}/new.txt"}


def test_no_option_that_says_it_is_a_path_is_left_out() -> None:
    """Whoever adds one gives it the type that is expanded."""
    said = [f"{key}: {text}" for key, text, expanded in options(Recipe, "") if is_path(text) and not expanded]
    assert said == []


def is_path(text: str) -> bool:
    return text.startswith(
        ("Folder", "File", "Path", "Manifest", "List of clips", "Its weights", "The judge's weights")
    )


def options(section: type[Section], prefix: str) -> list[tuple[str, str, bool]]:
    """Key, description, whether its type is a path."""
    found = []
    for name, field in section.model_fields.items():
        said = f"{field.annotation!r} {field.metadata!r}"
        found.append((f"{prefix}{name}", field.description or "", "expand at" in said))
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(kind)]
        for kind in inner:
            found += options(kind, f"{prefix}{name}.")
    return found


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def test_homes_of_others_and_what_is_no_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand("~") == home
    assert expand("~root/x").endswith("/x")
    assert not expand("~root/x").startswith("~")
    for path in ("./~/x", "a/~/x", "s3://bucket/~/x", "org/model", "/data/a #1 50% b?/$5/a$b", "file:///a"):
        assert expand(path) == path
    with pytest.raises(ValueError, match=r"knows no home folder ~nosuchuser; .* \./~nosuchuser/x"):
        expand("~nosuchuser/x")


@pytest.mark.parametrize("path", ["$HOME/x", "/scratch/$USER/x", "$DATA"])
def test_environment_variables_are_refused_by_name(path: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(TREE | {"storage": path}))
    with pytest.raises(RecipeError, match=r"^storage: '.*' is not allowed: environment variables are not filled in; "):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=r"^override 'data.root=.*': data\.root: .*begin it with ~ for your home"):
        load_recipe(tmp_path / "r.yaml", ["storage=x", f"data.root={path}"])


def test_options_of_jobs_are_expanded(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = command.recipe_arguments("test")
    parser.add_argument("--out", type=argument)
    args = parser.parse_args(["--recipe", "~/r.yaml", "--out=~/out"])
    assert (args.recipe, args.out) == (f"{home}/r.yaml", f"{home}/out")
    monkeypatch.setattr(sys, "argv", ["job", "--recipe", "r.yaml", "--out", "$SCRATCH/out"])
    with pytest.raises(SystemExit) as stop:
        command.run(lambda args: None, parser)
    assert str(stop.value.code).startswith("error: '$SCRATCH/out': environment variables are not filled in; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--recipe", "~/a", "--json", "~/b"],
        ["convert", "vgen", *["--unet", "~/a", "--vae", "~/b", "--text", "~/c", "--tokenizer", "~/d", "--out", "~/e"]],
        ["export", "diffusers", "--adapter", "~/a", "--out", "~/b"],
        ["export", "merged", "--model", "~/a", "--adapter", "~/b", "--out", "~/c"],
        ["export", "vgen", "--model", "~/a", "--adapter", "~/b", "--out", "~/c"],
    ],
)
def test_options_of_tools_are_expanded(arguments: list[str], home: str) -> None:
    args = vars(cli.parser().parse_args(arguments))
    assert sorted(v for v in args.values() if isinstance(v, str) and "/" in v) == [
        path.replace("~", home) for path in arguments if path.startswith("~")
    ]


def test_lists_of_clips_may_name_homes(home: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("~/a.mp4|||cat\n~b.mp4|||dog\n~nosuchuser/c.mp4|||cow\n$HOME/d.mp4|||pig\n")
    videos = [entry["video"] for entry in read_manifest(tmp_path / "list.txt")]
    others = [f"{tmp_path}/{name}" for name in ("~b.mp4", "~nosuchuser/c.mp4", "$HOME/d.mp4")]
    assert videos == [f"{home}/a.mp4", *others]
