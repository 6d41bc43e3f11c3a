"""Judges in actors give the scores and gradients that they would give in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from rayvideo.rewards import RewardError, load_reward
from rayvideo.sections import Judge, Rewards
from rayvideo.serving.clip_reward import ClipReward, Judged
from rayvideo.serving.local import LocalPool
from rayvideo.serving.pool import RewardPool

HERE = "tests.cluster.judges"
Open = Callable[..., RewardPool]


@pytest.fixture(scope="module")
def opened(ray_cluster: None) -> Iterator[Open]:
    """Makes pools that are closed after the last test."""
    pools: list[RewardPool] = []

    def open_pool(*judges: Judge, name: str | None = None) -> RewardPool:
        pools.append(RewardPool(judges, name=name))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def pair(opened: Open) -> RewardPool:
    bright = Judge(name="bright", type=f"{HERE}:Brightness", weight=2.0)
    return opened(bright, Judge(name="red", type=f"{HERE}:Redness", weight=-3.0), name="run")


@pytest.fixture(scope="module")
def broken(opened: Open) -> RewardPool:
    return opened(Judge(name="broken", type=f"{HERE}:Broken"))


def frames(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, size, size, generator=generator, requires_grad=True)


def test_gradients_equal_those_in_this_process(opened: Open, tiny_judge: Path):
    hpsv2 = Judge(
        name="hps", checkpoint=str(tiny_judge / "judge.pt"), architecture=str(tiny_judge / "open_clip_config.json")
    )
    judges = (hpsv2, Judge(name="bright", type=f"{HERE}:Brightness", weight=-0.5))
    pool = opened(*judges)
    # 48 pixels: the judge resizes to 32, so its resize is part of the gradient.
    there, here = frames(6, 48), frames(6, 48)
    captions = ["red cat", "red cat", "blue dog", "blue dog", "a", "b"]
    upstream = torch.linspace(-1, 2, 6)

    score = pool.score(there, captions)
    (score * upstream).sum().backward()
    expected = sum((j.weight * load_reward(j).score(here, captions) for j in judges), start=torch.zeros(6))
    (expected * upstream).sum().backward()

    assert there.grad is not None
    assert here.grad is not None
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-7)
    assert (there.grad - here.grad).norm() <= 1e-5 * here.grad.norm()


def test_judges_are_weighted_and_logged_raw(pair: RewardPool):
    pixels = frames(4)
    pending = pair.submit(pixels, ["a"] * 4)
    reward = pair.result(pending)

    bright, red = pixels.square().flatten(1).mean(1), pixels[:, 0].flatten(1).mean(1)
    torch.testing.assert_close(reward, 2 * bright - 3 * red)
    torch.testing.assert_close(pending.raw, {"bright": bright.detach(), "red": red.detach()})
    (slope,) = torch.autograd.grad(bright.sum(), pixels, retain_graph=True)
    assert pending.gradient_norm["bright"] == pytest.approx(slope.norm().item(), rel=1e-5)
    assert pending.gradient_norm["red"] > 0
    one, other = (torch.autograd.grad(score.sum(), pixels)[0].flatten() for score in (bright, red))
    assert pending.cosine == {("bright", "red"): pytest.approx(torch.cosine_similarity(one, other, 0).item(), rel=1e-4)}
    assert pending.micro_batch == {"bright": 8, "red": 8}
    assert pending.wait_s > 0


def test_clips_and_frames_in_actors_are_judged_as_in_this_process(opened: Open):
    judges = (
        Judge(name="bright", type="tests.clip_judges:Bright", weight=2.0),
        Judge(name="red", type="tests.clip_judges:redness"),
        Judge(name="steady", type="tests.clip_judges:Steady", micro_batch=2, options={"fps": 4, "size": [12, 8]}),
        Judge(name="faulty", type="tests.clip_judges:Faulty", weight=0.1),
    )
    options, drawn = Rewards(judges=judges, segments=2), torch.tensor([[0, 5], [3, 7], [2, 4]])

    def ask(pool: RewardPool, captions: list[str]) -> tuple[Judged, torch.Tensor]:
        reward = ClipReward(pool, options, frames=8, fps=8.0)
        shown = reward.shown(drawn)
        clips = torch.rand(3, 8, 3, 16, 12, generator=torch.Generator().manual_seed(0))
        pixels = clips[torch.arange(3)[:, None], shown].requires_grad_()
        found = reward.result(reward.submit(pixels, shown, drawn, captions, gradient=True))
        return found, torch.autograd.grad(found.rewards.sum(), pixels)[0]

    pool = pickle.loads(pickle.dumps(opened(*judges)))
    (there, slope), (here, expected) = (ask(pool, ["a", "b", "c"]) for pool in (pool, LocalPool(judges)))
    # Not bit for bit: a size is reached before the wire there, and in the judge here.
    torch.testing.assert_close(there.rewards, here.rewards)
    torch.testing.assert_close(slope, expected)
    torch.testing.assert_close((there.scores, there.gradient_norm), (here.scores, here.gradient_norm))
    assert there.cosine == pytest.approx(here.cosine, abs=1e-5)
    assert there.micro_batch == here.micro_batch == {"bright": 8, "red": 8, "steady": 2, "faulty": 8}
    assert there.wait_s > 0
    for caption, message in (
        ("nan", r"^judge 'faulty' gave NaN or Inf as score for captions \['nan'\]"),
        (
            "raise",
            r"(?s)^judge 'faulty' failed: KeyError.*in score\n.* \(request: 3 clips of 8x3x16x12 with gradient\)",
        ),
    ):
        with pytest.raises(RewardError, match=message):
            ask(pool, ["a", "b", caption])


def test_a_pickled_pool_answers_and_asks_for_gradients_only_when_needed(pair: RewardPool):
    @ray.remote(num_cpus=0)
    def elsewhere(pool: RewardPool, pixels: torch.Tensor) -> tuple[torch.Tensor, bool, dict[str, float]]:
        pending = pool.submit(pixels, ["a"] * len(pixels), gradient=False)
        score = pool.result(pending)
        return score, score.requires_grad, pending.gradient_norm

    pixels = frames(2).detach()
    score, differentiable, norms = ray.get(elsewhere.remote(pickle.loads(pickle.dumps(pair)), pixels))
    torch.testing.assert_close(score, pair.score(pixels, ["a", "a"]))
    assert not differentiable
    assert norms == {}
    with torch.no_grad():
        assert not pair.score(frames(2), ["a", "a"]).requires_grad


def test_actors_carry_the_pools_name(pair: RewardPool):
    pair.wait_until_ready()
    assert ray.get_actor("run") is not None
    names = sorted(name.rpartition("-")[0] for name in ray.util.list_named_actors() if name.startswith("run/"))
    assert names == ["run/bright", "run/red"]


def test_every_frame_needs_its_prompt(pair: RewardPool):
    with pytest.raises(ValueError, match="2 frames need as many prompts, got 1"):
        pair.submit(frames(2), ["cat"])


def test_a_killed_judge_is_not_noticed(opened: Open, tmp_path: Path):
    fuse = tmp_path / "fuse"
    pool = opened(Judge(name="fragile", type=f"{HERE}:Fragile", checkpoint=str(fuse)))
    pixels = frames(3)
    before = pool.score(pixels, ["a"] * 3)
    fuse.write_text("die")
    after = pool.score(pixels, ["a"] * 3)
    assert not fuse.exists(), "the judge was never killed"
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("nan", r"'broken' gave NaN or Inf as score for captions \['nan'\]"),
        ("infinite slope", r"'broken' gave NaN or Inf as gradient for captions \['cat', 'infinite slope'\]"),
        (
            "shape",
            r"'broken' \(.*\) returned scores of shape \[9\] for 8 frames; allowed: a tensor \[8\], one score a frame",
        ),
        ("raise", r"(?s)'broken' failed: KeyError.*in score\n.* \(request: 2 frames of 3x32x32 with gradient\)"),
    ],
)
def test_a_judge_that_errs_is_named(broken: RewardPool, prompt: str, message: str):
    with pytest.raises(RewardError, match=message):
        broken.score(frames(2), ["cat", prompt])


def test_a_judge_that_cannot_be_loaded_is_named(ray_cluster: None):
    pool = RewardPool([Judge(name="absent", type=f"{HERE}:Fragile")])
    pool.refuse_broken()  # nothing is known yet
    for look in (pool.wait_until_ready, pool.refuse_broken):
        with pytest.raises(RewardError, match=r"(?s)'absent'.*Fragile needs a checkpoint"):
            look()


def test_a_judge_that_takes_too_long_is_named(opened: Open):
    pool = opened(Judge(name="sleepy", type=f"{HERE}:Slow", timeout_s=0.5))
    pool.wait_until_ready()
    with pytest.raises(RewardError, match=r"'sleepy': no answer within timeout_s 0.5; .*1 of 1 replicas are loaded"):
        pool.score(frames(1), ["cat"])


def test_a_judge_that_finds_no_place_is_named(opened: Open):
    pool = opened(Judge(name="homeless", type=f"{HERE}:Brightness", resources={"nowhere": 2}, load_timeout_s=0.5))
    with pytest.raises(
        RewardError, match=r"'homeless': not loaded within load_timeout_s 0.5; .* 0 free GPUs, 2 nowhere"
    ):
        pool.wait_until_ready()
