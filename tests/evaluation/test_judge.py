"""What a clip's score in an evaluation is: of frames their plain mean, of a judge of clips what it says."""

from __future__ import annotations

import numpy as np
import torch

from rayvideo.evaluation.judge import judge_clips, judged_frames, sights
from rayvideo.recipe import parse_recipe
from rayvideo.rewards import load_reward
from rayvideo.serving.local import LocalPool
from tests.clip_judges import Lively

HERE = "tests.clip_judges"
CAPTIONS = ["cat", "dog"]


def test_scores_are_not_attenuated_and_clips_are_judged_whole() -> None:
    recipe = parse_recipe(
        {
            "model": {"path": "model"},
            "data": {"manifest": "clips.txt", "frames": 8, "fps": 4},
            "reward": {"judges": [{"name": "bright", "type": f"{HERE}:Bright", "weight": -2}], "segments": 2},
            "evaluation": {"judges": [{"name": "lively", "type": f"{HERE}:Lively", "options": {"frames": 4}}]},
        }
    )
    pool = LocalPool([*recipe.reward.judges, *recipe.evaluation.judges])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 16, 3), dtype=np.uint8)
    scores = judge_clips(recipe, pool, pixels, CAPTIONS)

    frames = judged_frames(pixels, 2)
    by_frame = load_reward(recipe.reward.judges[0]).score(frames.flatten(0, 1), ["cat", "cat", "dog", "dog"])
    assert torch.equal(scores["bright"], by_frame.view(2, 2).mean(1))
    whole = torch.from_numpy(pixels[:, [1, 3, 5, 7]]).movedim(-1, -3) / 255
    torch.testing.assert_close(scores["lively"], Lively().score(whole, CAPTIONS, torch.tensor([1, 3, 5, 7]) / 4))
    assert list(scores) == ["bright", "lively"]
    told = sights(recipe, pool, frames)
    assert {judge: sight.partition(",")[0] for judge, sight in told.items()} == {
        "bright": "2 of 8 frames at 4 fps",
        "lively": "4 of 8 frames at 4 fps",
    }
