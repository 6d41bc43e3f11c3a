"""A clip's reward, and its gradient in the decoded pixels, equal what the judges say when they are asked in place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rayvideo.rewards import ClipJudge, RewardError, load_reward
from rayvideo.rewards.clip_judge import at_times
from rayvideo.rewards.pixels import resize_frames
from rayvideo.rewards.temporal import attenuation, clip_frames, video_reward
from rayvideo.sections import Judge, Rewards
from rayvideo.serving.clip_reward import ClipReward, Judged
from rayvideo.serving.local import LocalPool

HERE = "tests.clip_judges"
BRIGHT = Judge(name="bright", type=f"{HERE}:Bright", weight=2.0)
RED = Judge(name="red", type=f"{HERE}:redness", weight=-0.5)
STEADY = Judge(name="steady", type=f"{HERE}:Steady", weight=3.0, options={"fps": 4})
WHOLE = Judge(name="whole", type=f"{HERE}:Steady", weight=0.2)
SMALL = Judge(name="small", type=f"{HERE}:Steady", weight=0.7, options={"frames": 4, "size": [12, 8]})
FRAMES, FPS = 16, 8.0
DRAWN = torch.tensor([[1, 4, 9, 15], [3, 5, 8, 12], [0, 6, 10, 14]])
CAPTIONS = ["cat", "dog", "snail"]


def reward_of(*judges: Judge, frames: int = FRAMES) -> ClipReward:
    return ClipReward(LocalPool(judges), Rewards(judges=judges, attenuation=0.3), frames, FPS)


def whole_clips(batch: int = 3) -> Tensor:
    return torch.rand(batch, FRAMES, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def picked(clips: Tensor, indices: Tensor) -> Tensor:
    return clips[torch.arange(len(clips))[:, None], indices]


def judged(reward: ClipReward, clips: Tensor, drawn: Tensor, captions: Sequence[str] = CAPTIONS) -> Judged:
    """What the reward says of the clips, which it is shown no more of than it asks for."""
    shown = reward.shown(drawn)
    return reward.result(reward.submit(picked(clips, shown), shown, drawn, captions, clips.requires_grad))


def in_place(judge: Judge, clips: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Raw scores, and their part in the reward before it is weighted."""
    loaded = load_reward(judge)
    if isinstance(loaded, ClipJudge):
        indices, times = clip_frames(FRAMES, FPS, loaded.fps, loaded.frames)
        scores = at_times(loaded, times.tolist()).score(clips[:, indices], CAPTIONS)
        return scores, scores
    frames = picked(clips, drawn)
    repeated = [caption for caption in CAPTIONS for _ in range(drawn.shape[1])]
    scores = loaded.score(frames.flatten(0, 1), repeated).view(drawn.shape)
    return scores, video_reward(scores, attenuation(drawn, FRAMES, 0.3))


@pytest.mark.parametrize(
    "judges",
    [(BRIGHT,), (STEADY,), (BRIGHT, RED), (BRIGHT, STEADY), (STEADY, RED, SMALL, BRIGHT), (WHOLE, RED), (SMALL, WHOLE)],
    ids=lambda judges: "+".join(judge.name for judge in judges),
)
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_reward_and_gradient_equal_autograd_in_place(judges: tuple[Judge, ...], micro_batch: int):
    judges = tuple(judge.model_copy(update={"micro_batch": micro_batch}) for judge in judges)
    there, here = whole_clips().requires_grad_(), whole_clips().requires_grad_()
    found = judged(reward_of(*judges), there, DRAWN)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    (found.rewards * upstream).sum().backward()

    raw = {judge.name: in_place(judge, here, DRAWN) for judge in judges}
    expected = sum((judge.weight * raw[judge.name][1] for judge in judges), start=torch.zeros(3))
    slopes = {name: torch.autograd.grad(part[0].sum(), here, retain_graph=True)[0] for name, part in raw.items()}
    (expected * upstream).sum().backward()

    torch.testing.assert_close(found.rewards, expected, rtol=1e-6, atol=1e-7)
    assert there.grad is not None
    assert here.grad is not None
    assert (there.grad - here.grad).norm() <= 1e-6 * here.grad.norm()
    torch.testing.assert_close(found.scores, {name: part[0].detach() for name, part in raw.items()})
    assert not any(scores.requires_grad for scores in found.scores.values())
    assert found.micro_batch == {judge.name: micro_batch for judge in judges}
    for name, slope in slopes.items():
        assert found.gradient_norm[name] == pytest.approx(slope.norm().item(), rel=1e-5)
    assert list(found.cosine) == [(a.name, b.name) for i, a in enumerate(judges) for b in judges[i + 1 :]]
    for (one, other), cosine in found.cosine.items():
        expected_cosine = torch.cosine_similarity(slopes[one].flatten(), slopes[other].flatten(), 0).item()
        assert cosine == pytest.approx(expected_cosine, abs=1e-5)


def test_one_judge_of_frames_gives_the_bits_of_the_pool():
    judge = BRIGHT.model_copy(update={"weight": 1.0})
    pool = LocalPool([judge])
    there, here = (picked(whole_clips(), DRAWN).requires_grad_() for _ in range(2))
    reward = ClipReward(pool, Rewards(judges=(judge,), attenuation=0.3), FRAMES, FPS)
    assert reward.shown(DRAWN) is DRAWN
    found = reward.result(reward.submit(there, DRAWN, DRAWN, CAPTIONS, gradient=True))
    found.rewards.mean().backward()

    scores = pool.score(here.flatten(0, 1), [caption for caption in CAPTIONS for _ in range(4)]).view(DRAWN.shape)
    expected = video_reward(scores, attenuation(DRAWN, FRAMES, 0.3))
    expected.mean().backward()
    assert torch.equal(found.rewards, expected)
    assert there.grad is not None
    assert here.grad is not None
    assert torch.equal(there.grad, here.grad)


def test_what_is_decoded_is_what_the_judges_look_at():
    assert reward_of(STEADY).shown(DRAWN).tolist() == [[0, 2, 4, 6, 8, 10, 12, 14]] * 3
    shown = reward_of(BRIGHT, STEADY).shown(DRAWN)
    assert shown.tolist() == [
        [0, 1, 2, 4, 6, 8, 9, 10, 12, 14, 15],
        [0, 2, 3, 4, 5, 6, 8, 10, 12, 14, 14],
        [0, 2, 4, 6, 8, 10, 12, 14, 14, 14, 14],
    ]
    reward = reward_of(BRIGHT, STEADY)
    with pytest.raises(ValueError, match="were decoded, but judges look at"):
        reward.submit(picked(whole_clips(), DRAWN), DRAWN, DRAWN, CAPTIONS, gradient=False)


def test_judges_that_are_shown_the_same_share_what_is_sent():
    other = STEADY.model_copy(update={"name": "other"})
    reward = reward_of(BRIGHT, STEADY, SMALL, RED, other)
    shown = reward.shown(DRAWN)
    request = reward.submit(picked(whole_clips(), shown), shown, DRAWN, CAPTIONS, gradient=False)
    names = [[judge.name for judge in sent.judges] for sent in request.sent]
    assert names == [["bright", "red"], ["steady", "other"], ["small"]]
    assert [list(sent.items.shape) for sent in request.sent] == [[12, 3, 16, 12], [3, 8, 3, 16, 12], [3, 4, 3, 16, 12]]
    assert request.sent[1].times == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_a_judge_without_gradient_serves_where_none_is_asked_for():
    lively = Judge(name="lively", type=f"{HERE}:Lively")
    found = judged(reward_of(lively, BRIGHT), whole_clips(), DRAWN)
    (expected, _), (bright, _) = (in_place(judge, whole_clips(), DRAWN) for judge in (lively, BRIGHT))
    assert torch.equal(found.scores["lively"], expected)
    assert 0 < expected.min() < expected.max() < 1
    assert (found.gradient_norm, found.cosine, found.rewards.requires_grad) == ({}, {}, False)
    torch.testing.assert_close(found.by_clip(), {"lively": expected, "bright": bright.mean(1)})
    with pytest.raises(RewardError, match="'lively' returned scores that carry no gradient to the clips"):
        judged(reward_of(lively), whole_clips().requires_grad_(), DRAWN)


def test_clips_come_to_a_judge_in_its_size():
    for size in ([12, 8], [32, 24]):
        judge = SMALL.model_copy(update={"options": {"size": size}, "resize": "bicubic"})
        seen = load_reward(judge)
        assert isinstance(seen, ClipJudge)
        large = resize_frames(whole_clips(), (size[0], size[1]), "bicubic", "crop")
        expected = seen.score(large, CAPTIONS, torch.arange(FRAMES) / FPS)
        torch.testing.assert_close(judged(reward_of(judge), whole_clips(), DRAWN).scores["small"], expected)


def test_a_clip_that_is_too_short_is_refused_when_the_judges_are_loaded():
    judge = Judge(name="patient", type=f"{HERE}:Steady", options={"frames": 32})
    with pytest.raises(RewardError, match=r"^judge 'patient' asks for 32 frames; .* 16 frames at 8 fps is too short"):
        reward_of(judge)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("nan", r"'faulty' gave NaN or Inf as score for captions \['nan'\]"),
        ("infinite slope", r"'faulty' gave NaN or Inf as gradient for captions"),
        ("detached", "'faulty' returned scores that carry no gradient to the clips"),
        ("shape", r"returned scores of shape \[8, 16\] for 8 clips; allowed: a tensor \[8\], one score a clip"),
        ("raise", r"(?s)'faulty' failed: KeyError\('a mistake'\)\nTraceback[^\n]*\n  File [^\n]*clip_judges\.py"),
    ],
)
def test_a_clip_judge_that_errs_is_named(caption: str, message: str):
    reward = reward_of(Judge(name="faulty", type=f"{HERE}:Faulty"), BRIGHT)
    with pytest.raises(RewardError, match=message):
        judged(reward, whole_clips().requires_grad_(), DRAWN, ["cat", "dog", caption])


def test_what_judges_see_is_told():
    told = reward_of(BRIGHT, STEADY, SMALL).sights(torch.tensor([0.0, 1.0]).expand(3, 64, 2))
    assert told == {
        "bright": "4 of 16 frames at 8 fps, 64x2 pixels of 0.000 to 1.000, as they are, unless the judge's own code "
        "resizes them",
        "steady": "8 of 16 frames at 8 fps, those nearest to 4 fps, 64x2 pixels of 0.000 to 1.000, as they are, unless "
        "the judge's own code resizes them",
        "small": "4 of 16 frames at 8 fps, 64x2 pixels of 0.000 to 1.000, resized to 12x8, bilinear",
    }


def test_a_pool_of_frames_refuses_judges_of_clips():
    with pytest.raises(ValueError, match=r"judges \['steady'\] see clips, not frames; ask them through ClipReward"):
        LocalPool([BRIGHT, STEADY]).submit(torch.rand(2, 3, 8, 8), ["a", "b"])
