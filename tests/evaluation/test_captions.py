"""Which captions are evaluated, which are shown, and which frames are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvideo.data.manifest import ManifestError
from rayvideo.evaluation.captions import Prompt, elsewhere, file_name, guarded, prompts, shown, spread
from rayvideo.evaluation.judge import judged_frames
from rayvideo.recipe import Recipe, parse_recipe


def recipe(**evaluation: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "evaluation": evaluation,
        }
    )


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "animals.txt").write_text(
        "".join(f"{n}.mp4|||cat {n}|||16\n" for n in range(10)) + "again|||cat 3|||16\n"
    )
    (tmp_path / "others.txt").write_text("a red car\n")
    return {"animals": str(tmp_path / "animals.txt"), "others": str(tmp_path / "others.txt")}


def test_every_caption_once_with_every_seed(sets: dict[str, str]) -> None:
    found = prompts(recipe(sets=sets, seeds=[3, 1]))
    assert len(found) == len(set(found)) == (10 + 1) * 2
    assert found[:2] == [Prompt("animals", "cat 0", 3), Prompt("animals", "cat 0", 1)]
    assert found[-1] == Prompt("others", "a red car", 1)


def test_few_captions_come_from_the_whole_list(sets: dict[str, str]) -> None:
    few = recipe(sets=sets, max_captions=4, previews=2)
    assert [prompt.caption for prompt in prompts(few)] == ["cat 0", "cat 2", "cat 5", "cat 7", "a red car"]
    assert [prompt.caption for prompt in shown(few)] == ["cat 0", "cat 5", "a red car"]
    assert shown(recipe(sets=sets, previews=0)) == []
    watched = recipe(sets=sets, guards=2, every=1, seeds=[3, 1])
    assert [prompt[1:] for prompt in guarded(watched)] == [
        (caption, seed) for caption in ("cat 0", "cat 5", "a red car") for seed in (3, 1)
    ], "with every seed, those of a caption in a row"
    assert [prompt.seed for prompt in elsewhere(guarded(watched))] == [6, 4] * 3
    assert spread("abc", 7) == ["a", "b", "c"]


def test_what_is_shown_is_evaluated(sets: dict[str, str]) -> None:
    both = recipe(sets=sets, max_captions=3, seeds=[8, 9])
    assert set(shown(both)) <= set(prompts(both))
    assert {prompt.seed for prompt in shown(both)} == {8}


def test_a_missing_list_is_named() -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.txt does not exist"):
        prompts(recipe(sets={"animals": "nowhere.txt"}))


def test_file_names_are_plain_and_short() -> None:
    assert file_name(7, Prompt("In Domain", "../été & <cat>/dog", 0)) == "07-in-domain-t-cat-dog"
    assert len(file_name(0, Prompt("set", "x" * 500, 0))) < 80


def test_first_frame_of_each_segment_is_judged() -> None:
    numbers = np.arange(2 * 16, dtype=np.uint8).reshape(2, 16, 1, 1, 1)
    frames = judged_frames(np.broadcast_to(numbers, (2, 16, 4, 6, 3)).copy(), 4)
    assert frames.shape == (2, 4, 3, 4, 6)
    assert (frames[:, :, 0, 0, 0] * 255).round().tolist() == [[0, 4, 8, 12], [16, 20, 24, 28]]
