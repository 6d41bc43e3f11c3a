import pytest
import torch
from torch import nn

from rayvideo import sections
from rayvideo.rewards import Reward, RewardError, clamp_pixels, load_reward, resolve
from rayvideo.rewards.hpsv2 import HPSv2


class Brightness(Reward):
    """A judge as a user may write it."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    @classmethod
    def load(cls, checkpoint, *, gain=1.0, **options):
        return cls(gain)

    def score(self, frames, prompts):
        return self.gain * frames.mean(dim=(1, 2, 3))


class Unfinished(Reward):
    """Has nothing yet."""


class Forgetful(Brightness):
    """Its load() returns nothing."""

    @classmethod
    def load(cls, checkpoint, **options):
        cls(1.0)


def test_a_users_class_is_found_by_its_name_and_gets_its_options():
    judge = sections.Judge(name="bright", type=f"{__name__}:Brightness", options={"gain": 2.0})
    reward = load_reward(judge)
    assert reward.name == "bright"
    assert reward.score(torch.full((1, 3, 4, 4), 0.25), ["any"]).item() == 0.5


def test_a_loaded_judge_is_frozen():
    judge = sections.Judge(name="bright", type=f"{__name__}:Brightness")
    reward = load_reward(judge)
    frames = torch.rand(2, 3, 4, 4, requires_grad=True)
    reward.score(frames, ["a", "b"]).sum().backward()
    assert not reward.training
    assert frames.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in reward.parameters())


def test_hpsv2_is_built_in():
    assert resolve("hpsv2") is HPSv2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hspv2", "neither one of"),
        ("no.such.module:Judge", "No module named"),
        (f"{__name__}:NoSuchClass", "NoSuchClass"),
        ("builtins:dict", "not a subclass"),
        ("builtins:len", "not a subclass"),
        (f"{__name__}:Unfinished", r"lacks load\(\) and score\(\)"),
    ],
)
def test_a_type_that_names_no_judge_is_refused(kind, reason):
    with pytest.raises(RewardError, match=f"'{kind}'.*{reason}"):
        resolve(kind)


def test_an_option_that_the_class_does_not_know_is_an_error_that_names_the_judge():
    judge = sections.Judge(name="mine", checkpoint="x.pt", options={"shiny": True})
    with pytest.raises(RewardError, match=r"judge 'mine': options\.shiny is not an option of 'hpsv2'"):
        load_reward(judge)


def test_a_load_that_returns_no_judge_is_named():
    judge = sections.Judge(name="mine", type=f"{__name__}:Forgetful")
    with pytest.raises(RewardError, match=r"judge 'mine': load\(\) of '.*:Forgetful' returned NoneType; allowed"):
        load_reward(judge)


@pytest.mark.parametrize(("mode", "gradient"), [("straight_through", [1, 1, 1]), ("hard", [0, 1, 0])])
def test_clamping_keeps_or_kills_the_gradient_of_saturated_pixels(mode, gradient):
    pixels = torch.tensor([-0.5, 0.3, 1.5], requires_grad=True)
    clamped = clamp_pixels(pixels, mode)
    clamped.sum().backward()
    assert clamped.tolist() == pytest.approx([0, 0.3, 1])
    assert pixels.grad is not None
    assert pixels.grad.tolist() == gradient
