"""The documents say what the code does: their tables are current and their snippets run."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from peft import PeftModel

from docs.options import PAGE, page
from rayvideo.models.lora import add_lora, lora_parameters, save_adapter
from rayvideo.recipe import parse_recipe
from rayvideo.rewards import Reward, RewardError, load_reward, options_of, resolve
from rayvideo.rewards.base import BUILT_IN
from rayvideo.rewards.hpsv2 import RELEASES
from rayvideo.sections import Lora
from rayvideo.training.folder import figures

README = Path(__file__).parents[1] / "README.md"
REWARDS = README.with_name("docs") / "rewards.md"


def snippets(page: Path, kind: str) -> list[str]:
    """The fenced blocks of one kind in a page."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


PYTHON = snippets(README, "python")
YAML = snippets(README, "yaml")


def test_every_option_stands_in_the_recipe_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/options.py"


def test_readme_puts_the_adapter_onto_a_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    tuned = add_lora(DiffusionPipeline.from_pretrained(tiny_pipeline).unet, Lora(), seed=0)
    for name, weight in lora_parameters(tuned).items():
        if "lora_B" in name:  # born as zeros, which would leave the base model's clips unchanged
            torch.nn.init.ones_(weight)
    save_adapter(tuned, tmp_path / "adapter")

    base = DiffusionPipeline.from_pretrained(tiny_pipeline)
    (code,) = (block for block in PYTHON if "PeftModel" in block)
    replaced = {
        "rayvideo/menagerie/weights/pipeline": tiny_pipeline,
        "runs/first/adapter": tmp_path / "adapter",
        "=20": "=2",
    }
    for shown, real in replaced.items():
        assert shown in code
        code = code.replace(shown, str(real))
    names: dict[str, Any] = {"DiffusionPipeline": DiffusionPipeline, "PeftModel": PeftModel}
    torch.manual_seed(0)
    exec(code, names)
    torch.manual_seed(0)
    before = base("red cat", num_frames=16, height=64, width=64, num_inference_steps=2).frames[0]
    assert names["frames"].shape == before.shape == (16, 64, 64, 3)
    assert abs(names["frames"] - before).max() > 0.1


def test_readme_shows_a_working_reward() -> None:
    (code,) = (block for block in PYTHON if "(Reward)" in block)
    names: dict[str, Any] = {}
    exec(code, names)
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


def test_readme_shows_a_working_recipe() -> None:
    whole, fragment = map(yaml.safe_load, YAML)
    assert len(parse_recipe(whole | fragment).reward.judges) == 2


def test_rewards_page_shows_recipes_that_parse() -> None:
    whole = yaml.safe_load(YAML[0])
    published, own = (parse_recipe(whole | yaml.safe_load(text)) for text in snippets(REWARDS, "yaml"))
    assert {judge.type for judge in published.evaluation.judges} == set(BUILT_IN)
    for judge in (*published.reward.judges, *published.evaluation.judges):
        if judge.type != "aesthetic":  # whose file is one of the reader's
            resolve(judge.type).check(judge.checkpoint, **options_of(judge))
    assert len(own.reward.judges) == 1


def test_rewards_page_shows_a_working_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = snippets(REWARDS, "python")
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    recipe = parse_recipe(yaml.safe_load(YAML[0]) | yaml.safe_load(snippets(REWARDS, "yaml")[1]))
    (judge,) = recipe.reward.judges
    reward = load_reward(judge)
    frames = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    reward.score(frames, ["a cat"]).sum().backward()
    assert frames.grad is not None
    assert (frames.grad > 0).all()  # brighter is nearer to the recipe's 0.6
    with pytest.raises(RewardError, match=r"options\.target 3 is not allowed"):
        resolve(judge.type).check(None, target=3)


def test_rewards_page_lists_the_releases() -> None:
    text = REWARDS.read_text(encoding="utf-8")
    for release in RELEASES:
        size = f"{release.size:,}".replace(",", " ")
        assert f"| `{release.file}` | {release.version} | {size} | `{release.sha256}` |" in text


def test_every_figure_of_a_training_is_explained() -> None:
    explained = README.with_name("docs").joinpath("summary.md").read_text(encoding="utf-8")
    names = ("reward", "score/a", "gradient_norm", "saturation", "clipped", "seconds/step")
    found = figures([{"step": 1, **dict.fromkeys(names, 0.0)}], ["a"])
    assert len(found) == 7
    assert [key for key in found if f"`{key}`" not in explained] == []
