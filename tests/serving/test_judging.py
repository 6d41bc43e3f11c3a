"""A frame's score and gradient are the same bits in any place and company, so requests may be merged in any way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayvideo
from rayvideo.rewards import RewardError, load_reward
from rayvideo.rewards.pixels import resize_frames
from rayvideo.sections import Judge
from rayvideo.serving.judging import judge_items
from rayvideo.serving.wire import decode, encode
from tests.cluster.judges import Brightness

HERE = "tests.cluster.judges"
CPU = torch.device("cpu")
MENAGERIE = Path(rayvideo.__file__).parent / "menagerie/weights/judge"
CAPTIONS = ["red cat", "a blue dog that jumps", "b"]


def frames(count: int, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def open_clip_judge(folder: Path, **options) -> Judge:
    files = {"checkpoint": str(folder / "judge.pt"), "architecture": str(folder / "open_clip_config.json")}
    return Judge(name="hps", **files, **options)


@pytest.mark.parametrize("kind", ["tiny", "bicubic", "bf16", "menagerie", "clip"])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_row_does_not_depend_on_place_and_neighbours(kind: str, gradient: bool, tiny_judge: Path, tiny_clip: Path):
    judge = {
        "tiny": open_clip_judge(tiny_judge),
        "bicubic": open_clip_judge(tiny_judge, resize="bicubic"),
        "bf16": open_clip_judge(tiny_judge, dtype="bf16"),
        "menagerie": open_clip_judge(MENAGERIE),
        "clip": Judge(name="clip", type="clip", checkpoint=str(tiny_clip)),
    }[kind]
    pixels, captions = frames(19), [CAPTIONS[i % 3] for i in range(19)]
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1))

    def judged(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        # A new judge each time: it must not matter which captions it has met before, and with which others.
        return judge_items(load_reward(judge), pixels[rows].numpy(), [captions[i] for i in rows], gradient, CPU)

    scores, slopes = judged(torch.arange(19))
    for rows in (order, order[:3], order[5:13]):
        own_scores, own_slopes = judged(rows)
        assert np.array_equal(own_scores, scores[rows])
        assert (own_slopes is None) == (slopes is None) == (not gradient)
        if own_slopes is not None and slopes is not None:
            assert np.array_equal(own_slopes, slopes[rows])


@pytest.mark.parametrize("gradient", [True, False])
def test_a_clip_does_not_depend_on_place_and_neighbours(gradient: bool, tiny_judge: Path):
    judge = open_clip_judge(tiny_judge).model_copy(update={"type": "tests.doctor.judges:Film"})
    clips, captions = torch.rand(5, 4, 3, 40, 32, generator=torch.Generator().manual_seed(0)), [*CAPTIONS, "a", "b"]
    times = (0.0, 0.1, 0.2, 0.4)

    def judged(rows: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
        chosen = [captions[i] for i in rows]
        return judge_items(load_reward(judge), clips[rows].numpy(), chosen, gradient, CPU, 2, times)

    scores, slopes = judged([0, 1, 2, 3, 4])
    for rows in ([3, 0, 4, 2, 1], [2], [4, 1, 3]):
        own_scores, own_slopes = judged(rows)
        assert np.array_equal(own_scores, scores[rows])
        if own_slopes is not None and slopes is not None:
            assert np.array_equal(own_slopes, slopes[rows])


def test_frames_resized_before_are_not_resized_again(tiny_judge: Path):
    for resize in ("bilinear", "bicubic"):
        reward = load_reward(open_clip_judge(tiny_judge, resize=resize))
        pixels = frames(8, 80)[..., :60]
        small = resize_frames(pixels, (32, 32), resize)
        assert resize_frames(small, (32, 32), resize) is small
        assert torch.equal(reward.score(small, ["a"] * 8), reward.score(pixels, ["a"] * 8))


RETURNED: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "a tuple": (lambda scores: (scores, None), "a tuple of 2"),
    "a list": (lambda scores: scores.tolist(), "a list of 8"),
    "an array": (lambda scores: scores.detach().numpy(), r"a numpy array \[8\]"),
    "a dict": (lambda scores: {"score": scores}, "a dict of 1"),
    "a number": (lambda scores: 0.5, r"float 0\.5"),
    "nothing": (lambda scores: None, "NoneType"),
    "one number for all": (lambda scores: scores.mean(), r"scores of shape \[\]"),
    "a column": (lambda scores: scores[:, None], r"scores of shape \[8, 1\]"),
    "complex numbers": (lambda scores: scores + 0j, "complex numbers"),
}


class Returning(Brightness):
    """Gives its scores in the form that `checkpoint` says."""

    form: str

    @classmethod
    def load(cls, checkpoint, **options):
        judge = cls()
        judge.form = str(checkpoint)
        return judge

    def score(self, frames, prompts):
        return RETURNED[self.form][0](super().score(frames, prompts))


@pytest.mark.parametrize("form", RETURNED)
def test_what_is_no_score_is_told_with_judge_class_and_type(form: str):
    reward = load_reward(Judge(name="mine", type=f"{__name__}:Returning", checkpoint=form))
    wanted = rf"^judge 'mine' \(score\(\) of Returning\) returned {RETURNED[form][1]}.*; allowed: a tensor \[8\], one"
    with pytest.raises(RewardError, match=wanted):
        judge_items(reward, frames(2).numpy(), ["cat", "dog"], True, CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_wire_keeps_what_its_precision_can(precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for values in (frames(2), frames(4, 16).view(2, 2, 3, 16, 16)):
        packed = encode(values, precision)
        assert packed.nbytes == values.numel() * dtype.itemsize
        assert torch.equal(decode(packed), values.to(dtype).float())


@pytest.mark.parametrize(
    ("kind", "prompt", "message"),
    [
        ("Broken", "raise", r"(?s)'broken' failed: KeyError\('a mistake'\)\n.*in score\n.*KeyError: 'a mistake'"),
        ("Broken", "detached", "'broken' returned scores that carry no gradient to the frames"),
        ("Broken", "unrelated", "'broken' returned scores that carry no gradient to the frames"),
    ],
)
def test_mistakes_are_told_with_the_judges_own_code(kind: str, prompt: str, message: str):
    reward = load_reward(Judge(name="broken", type=f"{HERE}:{kind}"))
    with pytest.raises(RewardError, match=message) as raised:
        judge_items(reward, frames(2).numpy(), ["cat", prompt], True, CPU)
    assert "judging.py" not in str(raised.value)
