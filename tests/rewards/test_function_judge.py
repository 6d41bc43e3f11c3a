"""A judge may be a plain function."""

from __future__ import annotations

import re

import pytest
import torch

from rayvideo.errors import RecipeError
from rayvideo.rewards import check_judge, load_reward, resolve
from rayvideo.sections import Judge
from tests.rewards.slope import check_slope

HERE = "tests.clip_judges"


def alone(frames):
    """Forgets its prompts."""
    return frames.mean((1, 2, 3))


def anything(frames, prompts, *, resize, **options):
    """Takes whatever comes, and tells."""
    return torch.full((len(frames),), float(len(options) + (resize == "bicubic")))


def test_its_options_are_its_keyword_arguments():
    frames = torch.rand(2, 3, 4, 4)
    for options, gain in (({}, 1), ({"gain": 3.0}, 3)):
        judge = load_reward(Judge(name="red", type=f"{HERE}:redness", options=options))
        assert judge.name == "red"
        torch.testing.assert_close(judge.score(frames, ["a", "b"]), gain * frames[:, 0].mean((1, 2)))
    check_slope(judge, ["a", "b"], 4, 1e-2)
    assert resolve(f"{HERE}:redness").differentiable


def test_it_gets_what_else_a_recipe_says_only_if_it_names_it():
    dark = Judge(name="dark", type=f"{HERE}:dark", checkpoint="here.pt", options={"limit": 0.5})
    assert not check_judge("judges.0", dark).differentiable
    assert load_reward(dark).score(torch.tensor([0.2, 0.7]).expand(3, 3, 1, 2), ["a"] * 3).tolist() == [0.5] * 3
    judge = load_reward(Judge(name="any", type=f"{__name__}:anything", resize="bicubic", options={"a": 1, "b": 2}))
    assert judge.score(torch.rand(1, 3, 4, 4), ["a"]).tolist() == [3]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (
            {"options": {"gian": 2}},
            "options.gian is not an option of 'HERE:redness'; did you mean 'gain'? Allowed: gain",
        ),
        ({"checkpoint": "x.pt"}, "checkpoint 'x.pt' is not taken by 'HERE:redness', a function without"),
        ({"architecture": "ViT-H-14"}, "architecture 'ViT-H-14' is not taken by"),
        ({"options": {"resize": "bicubic"}}, "options.resize is not allowed: resize stands beside options"),
        ({"type": f"{HERE}:dark", "checkpoint": "here.pt"}, "options don't fit 'HERE:dark', called as score(frames, "),
        ({"type": f"{__name__}:alone"}, "options don't fit '"),
    ],
)
def test_what_it_does_not_take_is_refused(judge: dict[str, object], message: str):
    with pytest.raises(RecipeError, match="^" + re.escape("judges.0." + message.replace("HERE", HERE))):
        check_judge("judges.0", Judge.model_validate({"name": "mine", "type": f"{HERE}:redness", **judge}))
