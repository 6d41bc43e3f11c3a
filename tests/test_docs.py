"""The documents say what the code does: tables are current, snippets run as printed, commands mean what they say."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import diffusers
import peft
import pytest
import torch
import yaml
from diffusers.loaders.peft import PeftAdapterMixin
from ray.scripts.scripts import cli as ray_cli

from docs.options import PAGE, page
from rayvideo import cli
from rayvideo.errors import RecipeError
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters, save_adapter
from rayvideo.recipe import Recipe, load_recipe, parse_recipe
from rayvideo.rewards import Reward, check_judge, load_reward, options_of, resolve
from rayvideo.rewards.hpsv2 import RELEASES
from rayvideo.rewards.loading import BUILT_IN
from rayvideo.rewards.options import check_options
from rayvideo.runs.folder import figures
from rayvideo.sections import Lora
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.serving.local import LocalPool
from tests import tiny_wan
from tests.documents import ROOT, Block, Command, block_of, blocks, commands

COMMANDS = commands()
MENAGERIE = "jobs/recipes/menagerie.yaml"

RUN = ("rayvideo export", "python -c", "python -m zipfile")
"""Commands that are run here as printed; those whose own parser reads them here, and why they are not run:"""
READ = {
    "make": "takes minutes, or starts or ends a cluster",
    "python jobs/": "tests/cluster runs the jobs, on models that take seconds",
    "python benchmarks/": "takes minutes or hours; only figures come of it",
    "python docs/options.py": "it would write its page; that it has nothing to write is tested",
    "python -m": "the tests and the menagerie's training",
    "rayvideo doctor": "tests/cluster/test_doctor.py runs it",
    "rayvideo convert": "needs files of several gigabytes; tests/models/test_vgen.py makes smaller ones",
    "ray": "needs a cluster, or a cloud's account; tests/cluster/test_jobs.py submits, follows and stops jobs",
    "kubectl": "needs a Kubernetes; tests/test_cluster_files.py reads the files",
    "export": "sets variables",
    "$EDITOR": "opens a file",
    "ffmpeg": "a program of its own, with zscale, which the one in PyAV lacks",
    "pre-commit": "would change this repository's hooks",
}
PYTHON = [
    ("README.md", "python", "PeftModel"),
    ("README.md", "python", "(Reward)"),
    ("docs/rewards.md", "python", "(Reward)"),
    ("docs/rewards.md", "python", "def blueness"),
    ("docs/rewards.md", "python", "(ClipJudge)"),
    ("docs/checkpoints.md", "python", "LoraUNet"),
    ("docs/models.md", "python", "(ModelScope)"),
    ("docs/checkpoints.md", "python", "load_into_transformer_2"),
    ("docs/checkpoints.md", "python", "DDIMScheduler"),
    ("docs/objectives.md", "python", "EarlyLook"),
    ("docs/checkpointing.md", "python", "Verdict"),
    ("docs/models.md", "python", "WanPipeline"),
    ("docs/mlflow.md", "python", "pyfunc"),
]
"""Blocks that tests run; those of the last six are tests/models/wan/test_export.py, tests/models/test_shapes.py,
tests/training/objectives/test_own.py, tests/training/test_stop_rule.py, tests/models/wan/test_formats.py and
tests/evaluation/test_pyfunc.py."""
LANGUAGES = {"bash", "python", "yaml", "bibtex", "diff", ""}


WHOLE = block_of("README.md", "yaml", "# mine.yaml")
"""README's recipe, which fragments of recipes are parts of."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path, adapter: Path) -> Path:
    """A folder like the repository with what documents speak of: recipes, lists, an adapter, a converted model."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("jobs", "benchmarks", "cluster", "docs", "rayvideo", "tests", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "mine.yaml").write_text(WHOLE)
    (folder / "R").symlink_to(ROOT / MENAGERIE)
    for name in ("new.txt", "non.txt"):
        (folder / name).write_text("red cat\n")
    shutil.copytree(adapter, folder / "runs/first/adapter")
    wan = add_lora(tiny_wan.build_transformer(), Lora(), seed=0)
    for weight in lora_parameters(wan).values():
        torch.nn.init.ones_(weight)
    save_adapter(wan, folder / "runs/wan/adapter")
    (folder / "runs/first/summary.json").symlink_to(ROOT / "docs/menagerie-summary.json")
    (folder / "models").mkdir()
    (folder / "models/vgen-release").symlink_to(tiny_pipeline)
    return folder


def test_every_option_stands_in_the_recipe_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/options.py"


def test_nothing_is_printed_that_no_test_reads() -> None:
    assert {block.kind for block in blocks()} <= LANGUAGES
    assert len(PYTHON) == sum(block.kind == "python" for block in blocks()), "a Python block without a test"
    for command in COMMANDS:
        line = " ".join(command.words)
        known = [start for start in (*RUN, *READ) if line.startswith(start)]
        assert known, f"{command.page}: neither run nor read: {line}"


# Commands


class Parsed(BaseException):
    """What a script was told, in place of its work."""

    def __init__(self, told: argparse.Namespace) -> None:
        super().__init__()
        self.told = told


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_commands_are_understood(command: Command, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    understand(command.words, command.named, monkeypatch)


def understand(words: list[str], named: bool, patch: pytest.MonkeyPatch) -> None:
    """Have a command's own parser read it, and its recipe and overrides read; files that it names must be there."""
    program, *rest = words
    if program == "make":
        makefile = Path("Makefile").read_text()
        targets, variables = (
            {*re.findall(pattern, makefile, re.MULTILINE)} for pattern in (r"^([\w.-]+):", r"^(\w+) [?:]?=")
        )
        for word in rest:
            assert word.partition("=")[0] in (variables if "=" in word else targets)
    elif program == "ray":
        told = told_to_ray(rest, named)
        if entrypoint := told.get("entrypoint"):
            understand([word.replace("$PWD", os.getcwd()) for word in entrypoint], False, patch)
    elif program == "rayvideo":
        if named:
            assert rest[0] in cli.parser().format_help()
        else:
            read_recipe_of(cli.parser().parse_args(rest))
    elif program == "python" and rest[0] not in ("-c", "-m") and not named:
        read_recipe_of(told_to_script(rest, patch))
    else:
        files = [word for word in rest if word.startswith(("cluster/", "docs/", "tests/"))]
        assert [file for file in files if not Path(file).exists()] == []


def told_to_ray(words: list[str], named: bool) -> dict[str, Any]:
    """What Ray's command line makes of the words; of a name, only that it is there."""
    command: Any = ray_cli
    while isinstance(command, click.Group) and words:
        name, *words = words
        command = command.commands[name]
    return {} if named else dict(command.make_context("ray", words).params)


def told_to_script(words: list[str], patch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script's own parser makes of the words."""

    def stop(parser: argparse.ArgumentParser, parse: Any) -> NoReturn:
        raise Parsed(parse(parser))

    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        # parse_intermixed_args makes use of parse_args' kin, with arguments.
        patch.setattr(
            argparse.ArgumentParser,
            name,
            lambda parser, *given, parse=parse: parse(parser, *given) if given else stop(parser, parse),
        )
    patch.setattr(sys, "argv", words)
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(words[0], run_name="__main__")
    return parsed.value.told


def read_recipe_of(told: argparse.Namespace) -> None:
    recipe = getattr(told, "recipe", None)
    if recipe is not None:
        load_recipe(recipe, told.overrides)


@pytest.fixture
def at_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk


def test_an_adapter_is_exported_and_loaded_again(at_desk: Path) -> None:
    """docs/checkpoints.md from one page's end to the other."""
    lines = [command for command in COMMANDS if command.words[:2] == ["rayvideo", "export"] and not command.named]
    assert len(lines) == 5
    for command in lines:
        cli.main(command.words[1:])
    names: dict[str, Any] = vars(diffusers) | {"PeftAdapterMixin": PeftAdapterMixin}
    exec(block_of(*PYTHON[5]), names)
    assert any("lora" in name for name, _ in names["pipe"].unet.named_parameters())


@pytest.mark.parametrize("page", ["docs/summary.md", "docs/clusters.md"])
def test_lines_of_python_run(page: str, desk: Path) -> None:
    (line,) = {command.line for command in COMMANDS if command.page == page and command.words[:2] == ["python", "-c"]}
    folder = desk if page == "docs/summary.md" else ROOT
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {"docs/summary.md": "'n': ", "docs/clusters.md": "rayvideo/menagerie/weights/pipeline/unet"}
    assert wanted[page] in done.stdout


# Python and recipes


@pytest.mark.timeout(600)
def test_readme_puts_the_adapter_onto_the_embedded_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rayvideo").symlink_to(ROOT / "rayvideo")
    monkeypatch.chdir(tmp_path)
    tuned = add_lora(load_model("rayvideo/menagerie/weights/pipeline", parts=("denoiser",)).denoiser, Lora(), seed=0)
    for name, weight in lora_parameters(tuned).items():
        if "lora_B" in name:  # born as zeros, which would leave the base model's clips unchanged
            torch.nn.init.ones_(weight)
    save_adapter(tuned, "runs/first/adapter")

    names: dict[str, Any] = {"DiffusionPipeline": diffusers.DiffusionPipeline, "PeftModel": peft.PeftModel}
    exec(block_of(*PYTHON[0]), names)
    assert names["frames"].shape == (16, 64, 64, 3)
    pipe = names["pipe"]

    def clip() -> Any:
        torch.manual_seed(0)
        return pipe("red cat", num_frames=4, height=64, width=64, num_inference_steps=1).frames[0]

    after = clip()
    with pipe.unet.disable_adapter():
        assert abs(after - clip()).max() > 0.1


def test_readme_shows_a_working_reward() -> None:
    names: dict[str, Any] = {}
    exec(block_of(*PYTHON[1]), names)
    kind = names["Blueness"]
    assert issubclass(kind, Reward)
    reward = kind.load(None, resize="bilinear", dtype=torch.float32)
    frames = torch.zeros(2, 3, 8, 8)
    frames[1, 2] = 1
    frames.requires_grad_()
    scores = reward.score(frames, ["a cat", "a cat"])
    assert scores.tolist() == [0, 1]
    scores.sum().backward()
    assert frames.grad is not None
    assert (frames.grad[:, 2] > 0).all()


@pytest.mark.parametrize("block", [block for block in blocks() if block.kind == "yaml"], ids=lambda block: block.page)
def test_recipes_parse(block: Block) -> None:
    recipe = parse_recipe(yaml.safe_load(WHOLE) | yaml.safe_load(block.text))
    for judge in (*recipe.reward.judges, *recipe.evaluation.judges):
        if judge.type in BUILT_IN:
            check_options(judge, resolve(judge.type).load)


def test_rewards_page_shows_every_published_judge() -> None:
    recipe = parse_recipe(yaml.safe_load(WHOLE) | yaml.safe_load(block_of("docs/rewards.md", "yaml", "pickscore")))
    assert {judge.type for judge in recipe.evaluation.judges} == set(BUILT_IN)
    for judge in (*recipe.reward.judges, *recipe.evaluation.judges):
        if judge.type != "aesthetic":  # whose file is one of the reader's
            resolve(judge.type).check(judge.checkpoint, **options_of(judge))


def test_rewards_page_shows_a_working_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(block_of(*PYTHON[2]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    recipe = parse_recipe(yaml.safe_load(WHOLE) | yaml.safe_load(block_of("docs/rewards.md", "yaml", "my_rewards")))
    (judge,) = recipe.reward.judges
    reward = load_reward(judge)
    frames = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    reward.score(frames, ["a cat"]).sum().backward()
    assert frames.grad is not None
    assert (frames.grad > 0).all()  # brighter is nearer to the recipe's 0.6
    for options, message in (
        ({"target": 3}, r"^judges\.options\.target 3 is not allowed"),
        ({"taget": 0.5}, r"^judges\.options\.taget is not an option of .*; did you mean 'target'\?"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_judge("judges", judge.model_copy(update={"options": options}))
    monkeypatch.delitem(sys.modules, "my_rewards")


def test_models_page_shows_a_working_family(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_family.py").write_text(block_of("docs/models.md", "python", "(ModelScope)"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_family", raising=False)
    family = yaml.safe_load(block_of("docs/models.md", "yaml"))["model"]["family"]
    shutil.copytree(tiny_pipeline, tmp_path / "model")
    file = tmp_path / "model" / "vae" / "config.json"
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    file.write_text(json.dumps(json.loads(file.read_text()) | statistics))
    model = load_model(tmp_path / "model", family=family, parts=("vae",))
    mean = torch.ones(1, 4, 2, 8, 8)
    latents = model.posterior(mean, mean).mode()
    torch.testing.assert_close(latents[0, :, 0, 0, 0], torch.tensor([0.9, 0.4, 0.7 / 3, 0.15]))
    with torch.no_grad():
        decoded = model.decode_frames(latents)
        torch.testing.assert_close(
            decoded[0], load_model(tiny_pipeline, parts=("vae",)).decode_frames(0.18215 * mean)[0]
        )
    monkeypatch.delitem(sys.modules, "my_family")


def test_rewards_page_shows_a_working_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(tmp_path, monkeypatch, "my_functions", PYTHON[3]) as recipe:
        (judge,) = recipe.reward.judges
        assert check_judge("judges", judge).reads_captions is False
        reward = load_reward(judge)
    frames = torch.zeros(2, 3, 8, 8)
    frames[1, 2] = 1
    assert reward.score(frames.requires_grad_(), ["a cat", "a cat"]).tolist() == [0, 2]


def test_rewards_page_shows_working_judges_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(tmp_path, monkeypatch, "my_clips", PYTHON[4]) as recipe:
        judges = (recipe.reward.judges[1], *recipe.evaluation.judges)
        kinds = [check_judge("judges", judge, recipe.data) for judge in judges]
        reward = ClipReward(LocalPool(judges), recipe.reward, recipe.data.frames, recipe.data.fps)
        assert [kind.differentiable for kind in kinds] == [True, False]
        drawn = torch.tensor([[0, 4, 8, 12]]).expand(2, -1)
        decoded = reward.shown(drawn)
        assert decoded.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]] * 2
        pixels = torch.zeros(2, 16, 3, 8, 8)
        pixels[1, 8:] = 0.5  # everything changes once
        found = reward.result(reward.submit(pixels, decoded, drawn, ["a cat", "a dog"], gradient=False))
    assert found.scores["steady"].tolist() == pytest.approx([0, -0.5 / 0.25 / 7])
    assert found.scores["lively"].tolist() == [0, 1]


@contextmanager
def shown(folder: Path, patch: pytest.MonkeyPatch, module: str, block: tuple[str, str, str]) -> Iterator[Recipe]:
    """The recipe of a page that names a module, which is the page's block and can be imported."""
    (folder / f"{module}.py").write_text(block_of(*block))
    patch.syspath_prepend(folder)
    yield parse_recipe(yaml.safe_load(WHOLE) | yaml.safe_load(block_of(block[0], "yaml", module)))
    sys.modules.pop(module, None)


# Figures


def test_rewards_page_lists_the_releases() -> None:
    text = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    for release in RELEASES:
        size = f"{release.size:,}".replace(",", " ")
        assert f"| `{release.file}` | {release.version} | {size} | `{release.sha256}` |" in text


def test_every_figure_of_a_training_is_explained() -> None:
    explained = (ROOT / "docs/summary.md").read_text(encoding="utf-8")
    names = ("reward", "score/a", "gradient_norm", "saturation", "clipped", "seconds/step")
    found = figures([{"step": 1, **dict.fromkeys(names, 0.0)}], ["a"])
    assert len(found) == 7
    assert [key for key in found if f"`{key}`" not in explained] == []
