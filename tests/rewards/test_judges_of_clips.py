"""Judges of whole clips, as a user may write them: found, checked and shown clips of their size."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from rayvideo.errors import RecipeError
from rayvideo.rewards import ClipJudge, RewardError, check_judge, load_reward, resolve
from rayvideo.rewards.clip_judge import at_times
from rayvideo.sections import Data, Judge
from tests.clip_judges import Lively, Steady

HERE = "tests.clip_judges"


class Unfinished(ClipJudge):
    """Has nothing yet."""


class Seeing(Steady):
    """Remembers the shapes of what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def score(self, clips: torch.Tensor, prompts: Sequence[str], times: torch.Tensor) -> torch.Tensor:
        self.seen.append(clips.shape)
        return super().score(clips, prompts, times)


def data(frames: int, fps: float = 8.0) -> Data:
    return Data(manifest="clips.txt", frames=frames, fps=fps)


def test_one_is_found_by_its_name_and_gets_its_options_and_the_recipes_resize():
    judge = Judge(name="steady", type=f"{HERE}:Steady", resize="bicubic", options={"fps": 4, "size": [8, 6]})
    loaded = load_reward(judge)
    assert isinstance(loaded, Steady)
    assert (loaded.sees, loaded.fps, loaded.frames, loaded.size) == ("clip", 4, None, (8, 6))
    assert (loaded.resize, loaded.framing) == ("bicubic", "crop")
    with pytest.raises(RewardError, match=r"lacks load\(\) and score\(\)"):
        resolve(f"{__name__}:Unfinished")


def test_clips_come_in_its_size_with_their_times():
    judge = Seeing.load(None, size=[4, 6])
    clips = torch.zeros(2, 3, 3, 8, 12)
    clips[0, 1:] = 1  # in one of two steps everything changes, within half a second
    assert judge.score(clips, ["a", "b"], torch.tensor([0.0, 0.5, 2.0])).tolist() == [-1, 0]
    assert at_times(judge, (0.0, 0.5, 2.0)).score(clips, ["a", "b"]).tolist() == [-1, 0]
    assert judge.seen == [(2, 3, 3, 8, 12), (2, 3, 3, 4, 6)]


def test_what_one_says_of_itself_holds_at_its_times_too():
    judge = Lively()
    judge.name = "lively"
    timed = at_times(judge, (0.0, 1.0))
    assert (timed.name, timed.sees, timed.differentiable, type(timed).__name__) == ("lively", "clip", False, "Lively")


def test_clips_that_are_too_short_are_refused_before_anything_starts():
    long = Judge(name="long", type=f"{HERE}:Long")
    assert check_judge("judges.0", long, data(32)) is resolve(long.type)
    assert check_judge("judges.0", long) is resolve(long.type)
    message = "judges.0.type 'tests.clip_judges:Long' asks for 32 frames at 8 fps; a clip of 16 frames at 8 fps is too "
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}short; raise data.frames$"):
        check_judge("judges.0", long, data(16))
