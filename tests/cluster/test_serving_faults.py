"""Whatever dies or is merged, judges give the same bits; what can't be mended is told, and nothing becomes a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from rayvideo.rewards import RewardError
from rayvideo.sections import Judge, Replicas
from rayvideo.serving.local import LocalPool
from rayvideo.serving.pool import Pending, RewardPool
from tests.cluster.actors import eventually, kill, pid_of, replicas

HERE = "tests.cluster.judges"
Open = Callable[..., RewardPool]
Answer = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def opened(ray_cluster: None) -> Iterator[Open]:
    """Makes pools that are closed after the last test."""
    pools: list[RewardPool] = []

    def open_pool(*judges: Judge, **options) -> RewardPool:
        pools.append(RewardPool(judges, **options))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()


def frames(count: int, size: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, size, size, generator=generator, requires_grad=True)


def answer(pool: RewardPool, pixels: torch.Tensor, pending: Pending) -> Answer:
    scores = pool.result(pending)
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    return scores.detach(), slope


class Asked:
    """Many requests of several sizes, and what a judge in this process answers."""

    def __init__(self, pool: RewardPool, judge: Judge) -> None:
        self.pool = pool
        self.requests = [(frames(n), [("a", "red cat", "b c")[i % 3] for i in range(n)]) for n in (3, 8, 5, 2, 11)]
        local = LocalPool([judge])
        self.expected = [answer(local, request[0], local.submit(*request)) for request in self.requests]

    def submit(self, rounds: int = 1) -> list[Pending]:
        return [self.pool.submit(*request) for _ in range(rounds) for request in self.requests]

    def check(self, pending: list[Pending]) -> None:
        for number, one in enumerate(pending):
            which = number % len(self.requests)
            scores, slope = answer(self.pool, self.requests[which][0], one)
            assert torch.equal(scores, self.expected[which][0])
            assert torch.equal(slope, self.expected[which][1])


@pytest.mark.slow
def test_neither_merging_nor_deaths_change_a_bit(opened: Open, tiny_judge: Path):
    hps = Judge(
        name="hps",
        checkpoint=str(tiny_judge / "judge.pt"),
        architecture=str(tiny_judge / "open_clip_config.json"),
        replicas=Replicas(min=2, max=2),
    )
    pool = opened(hps, name="mortal", merge_ms=20)
    asked = Asked(pool, hps)
    asked.check(asked.submit(4))

    # One of two replicas, while requests wait.
    one, other = map(pid_of, replicas("mortal"))
    pending = asked.submit(8)
    kill(one)
    asked.check(pending)

    # All of them.
    eventually(lambda: len(replicas("mortal")) == 2, "the dead replica has a successor")
    pids = list(map(pid_of, replicas("mortal")))
    assert other in pids
    assert one not in pids
    pending = asked.submit(8)
    kill(*pids)
    asked.check(pending)

    # The router, with answers that were given but not fetched, and with requests under way.
    pending = asked.submit()
    ray.wait([call for one in pending for call in one.sent.calls], num_returns=len(pending), timeout=60)
    router = pid_of(ray.get_actor("mortal"))
    pending += asked.submit(8)
    kill(router)
    asked.check(pending)
    assert pid_of(ray.get_actor("mortal")) != router


def test_requests_of_several_callers_share_a_forward_pass(opened: Open, tmp_path: Path):
    log, hold = tmp_path / "passes", tmp_path / "passes.hold"
    pool = opened(Judge(name="logged", type=f"{HERE}:Logged", checkpoint=str(log)), name="merging")

    @ray.remote(num_cpus=0)
    def elsewhere(pool: RewardPool) -> torch.Tensor:
        return pool.score(frames(2).detach(), ["there"] * 2)

    hold.touch()
    sent = [pool.submit(frames(1), ["first"])]
    eventually(log.exists, "the judge is busy")
    far = elsewhere.remote(pool)
    for count, gradient in ((3, False), (4, True), (4, False), (2, False)):
        sent.append(pool.submit(frames(count), [f"here {count}"] * count, gradient))
    router = ray.get_actor("merging")
    eventually(lambda: "5 requests wait" in ray.get(router.described.remote("logged")), "all wait for the judge")
    hold.unlink()

    def expected(count: int) -> torch.Tensor:
        return frames(count).detach().square().flatten(1).mean(1)

    assert torch.equal(ray.get(far), expected(2))
    for pending in sent:
        assert torch.equal(pool.result(pending).detach(), expected(len(pending.sent.items)))
    # Eight frames are a pass; those with gradient are judged by themselves.
    passes = [line.split(": ") for line in log.read_text().splitlines()]
    assert passes[0] == ["gradient", "1 first"]
    assert ["gradient", "4 here 4"] in passes
    assert len(passes) == 4
    shared = [line for gradient, line in passes if gradient == "no gradient"]
    assert len(shared) == 2  # of four requests; which of them share one depends on when the far one comes
    assert sorted(", ".join(shared).split(", ")) == ["2 here 2", "2 there", "3 here 3", "4 here 4"]


def test_a_judge_that_kills_its_process_again_and_again_is_named(opened: Open):
    pool = opened(Judge(name="deadly", type=f"{HERE}:Broken"))
    with pytest.raises(
        RewardError,
        match=r"(?s)judge 'deadly': 3 processes in a row died in this request.*"
        r"\(request: 2 frames of 3x32x32 with gradient\)",
    ):
        pool.score(frames(2, 32), ["cat", "die"])
    assert pool.score(frames(2, 32), ["cat", "cat"]).shape == (2,)


def test_a_lack_of_memory_halves_the_micro_batch_once(opened: Open):
    pool = opened(Judge(name="hungry", type=f"{HERE}:Hungry"))
    pixels = frames(6, 32)
    pending = pool.submit(pixels, ["0.25"] * 6)
    assert torch.equal(pool.result(pending).detach(), pixels.detach().square().flatten(1).mean(1))
    assert pending.micro_batch == {"hungry": 4}
    with pytest.raises(
        RewardError,
        match=r"judge 'hungry' is out of memory: .*DefaultCPUAllocator.* \(with micro_batch 4\) "
        r"\(request: 6 frames of 3x32x32 with gradient\)",
    ):
        pool.score(pixels, ["1"] * 6)


def test_replicas_come_with_a_long_queue_and_go_when_idle(opened: Open):
    pool = opened(
        Judge(
            name="slow",
            type=f"{HERE}:Slow",
            options={"seconds": 0.5},
            replicas=Replicas(max=2, idle_s=2),
        ),
        name="elastic",
    )
    pending: list[Pending] = []

    def grown() -> bool:
        while len(pending) < 4:
            pending.append(pool.submit(frames(1, 32), ["cat"]))
        pool.result(pending.pop(0))
        return len(replicas("elastic")) == 2

    eventually(grown, "a second replica for a queue of four requests")
    for one in pending:
        pool.result(one)
    eventually(lambda: len(replicas("elastic")) == 1, "one replica when nothing is to be done")
    pool.score(frames(1, 32), ["cat"])


def test_a_judge_may_have_packages_of_its_own(opened: Open, tmp_path: Path):
    """Two versions of a module side by side, neither of which this process can import."""
    judges = []
    for version in (1, 2):
        package = tmp_path / str(version) / "clashing"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            "from tests.cluster.judges import Brightness\n"
            "class Judge(Brightness):\n"
            f"    def score(self, frames, prompts): return {version} * super().score(frames, prompts)\n"
        )
        env = {"env_vars": {"PYTHONPATH": f"{package.parent}:${{PYTHONPATH}}"}}
        judges.append(Judge(name=f"v{version}", type="clashing:Judge", runtime_env=env))
    pool = opened(*judges)
    pending = pool.submit(frames(2, 32), ["cat"] * 2)
    pool.result(pending)
    assert torch.equal(pending.raw["v2"], 2 * pending.raw["v1"])
    # Of 3·v1 and v2 = 2·v1 the gradients are parallel.
    assert pending.cosine["v1", "v2"] == pytest.approx(1)
    with pytest.raises(RewardError, match=r"judge 'odd': runtime_env is not allowed: .*py_modules"):
        opened(Judge(name="odd", runtime_env={"py_modules": 3}))
