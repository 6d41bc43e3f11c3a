"""The model of many GPUs, and what is made of runs with one worker and two."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.gpu.cases import MODELSCOPE
from benchmarks.scaling_model import COMPUTE, OTHER, Cluster, Counted, Scaling, counted, first_above, parts, shares
from rayvideo.recipe import load_recipe

ONE = Counted(flops=100.0, judge_flops=10.0, judge_bytes=20, clip_bytes=5, adapter=1000, batch=2)
SLOW = Cluster(
    flops=10.0,
    judge_flops=10.0,
    judge_copies=2,
    gpus=8,
    link=1000.0,
    network=100.0,
    latency=0.5,
    calls=4.0,
    write=1200.0,
    checkpoint_every=10,
)


def test_parts_are_what_they_carry_by_its_rate() -> None:
    assert parts(ONE, SLOW, workers=4, clips=2) == pytest.approx(
        {
            COMPUTE: 20.0,
            "judge: compute": 8 * 10 / 20,
            "judge: frames and gradients": 8 * 20 / 200,
            "judge: calls through the router": 1.0,
            "all-reduce of the adapter's gradient": 2 * 3 * (4 * 1000 / 4 / 1000 + 0.5),
            "latents and embeddings": 0.4,
            "checkpoint": 12000 / 1200 / 10,
        }
    )


def test_an_all_reduce_goes_by_the_network_once_there_are_several_machines() -> None:
    name = "all-reduce of the adapter's gradient"
    within, between = (parts(ONE, SLOW, workers, 2)[name] for workers in (8, 9))
    assert within == pytest.approx(14 * (500 / 1000 + 0.5))
    assert between == pytest.approx(16 * (4000 / 9 / 100 + 0.5))
    assert parts(ONE, SLOW, 1, 2)[name] == 0


def test_it_stops_where_a_part_takes_its_share() -> None:
    def step(workers: int) -> dict[str, float]:
        return {COMPUTE: 9.0, "judge": workers / 10, "constant": 0.5}

    assert first_above(0.1, "judge", step) == 11  # 1.1 of 10.6; 1.0 of 10.5 is less
    assert first_above(0.5, "judge", step) == 95
    assert first_above(0.5, OTHER, step) == 85
    assert first_above(0.5, "constant", step) is None
    assert sum(shares(step(10)).values()) == pytest.approx(1 + shares(step(10))[OTHER])


def test_a_fixed_number_of_clips_is_shared_by_no_more_workers_than_clips() -> None:
    fixed, growing = (Scaling("it", ONE, SLOW, clips=16, fixed=fixed) for fixed in (True, False))
    assert fixed.step(4)[COMPUTE] == growing.step(1)[COMPUTE] / 4 == 40.0
    head, *_, last = fixed.table([8, 16, 32]).splitlines()
    assert head == "| it, 16 clips in all | 8 GPUs | 16 GPUs | 10% from | 50% from |"
    assert last.startswith("| step, s | ")
    (clips,) = [row for row in fixed.table([8]).splitlines() if row.startswith("| latents")]
    assert clips.endswith("| > 16 | > 16 |")
    assert set(fixed.as_json([8, 32])["seconds"]) == {8}


def test_modelscopes_parts_are_counted() -> None:
    """22 calls of 4.9 TFLOP and what comes after; frames of 224x224 in fp32; latents of 16x32x32, 77 embeddings."""
    found = counted(MODELSCOPE)
    assert found.flops + found.judge_flops == pytest.approx(145.1e12, rel=0.001)
    assert found.judge_flops == pytest.approx(2 * 1.34e12, rel=0.1)  # there, and the gradient back
    assert found.judge_bytes == 2 * 4 * 4 * 3 * 224 * 224
    assert found.clip_bytes == 4 * (2 * 4 * 16 * 32 * 32 + 77 * 1024)
    assert found.adapter > 1e6


@pytest.mark.parametrize("workers", scaling.WORKERS)
def test_one_worker_and_two_make_the_same_clips_a_step(workers: int, tmp_path: Path) -> None:
    chosen = scaling.overrides(workers, 4, tmp_path, tmp_path / "latents", "name")
    training = load_recipe(scaling.RECIPE, chosen).training
    assert training.global_batch == scaling.ALL
    assert training.workers.max == workers
    assert training.accumulation_of(workers) > 1  # the judge's work can be hidden, with both


def test_runs_are_summed_up_by_medians() -> None:
    def steps(*seconds: float) -> scaling.Steps:
        return [{"seconds/step": each, "seconds/judge": 0.1 * each, "seconds/data": 0.0} for each in seconds]

    found = {1: [steps(2.0, 9.0, 2.0), steps(4.0)], 2: [steps(1.0), steps(3.0)]}
    ratios = scaling.ratios(found)
    assert ratios["a step of two workers / of one"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert ratios["judge wait, 2 workers"] == pytest.approx(0.1)
    assert scaling.workers_table(found).splitlines()[-1] == "| 2 | 2.00 | 0.62 | 10.0% | 0.0% |"
