"""What a benchmark measures is what it says; how long it takes is nobody's business here."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import CONFIGS, FLOPS, about
from benchmarks.gpu.bench import Bench, matrix_rate, switches
from benchmarks.gpu.cases import FP32, MODELSCOPE, WAN, WORLDS, World
from benchmarks.gpu.flops import count_step
from benchmarks.gpu.step import PARTS, Step
from benchmarks.gpu.table import flops_table, markdown
from rayvideo.recipe import load_recipe
from rayvideo.sections import Editing

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
NARROW: dict[str, dict[str, Any]] = {
    "modelscope-1.7b/unet/config.json": {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "attention_head_dim": 4,
        "cross_attention_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "modelscope-1.7b/vae/config.json": {
        "block_out_channels": [4, 4, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "wan2.1-1.3b/transformer/config.json": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 16,
        "freq_dim": 16,
        "num_layers": 1,
        "text_dim": 8,
    },
    "wan2.1-1.3b/vae/config.json": {"base_dim": 4, "num_res_blocks": 1},
}
JUDGE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 28, "patch_size": 14, "layers": 1, "width": 8, "head_width": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
SMALL = [
    replace(MODELSCOPE, frames=4, height=32, width=32, tokens=3, editing=Editing(steps=5)),
    replace(WAN, frames=5, height=32, width=32, tokens=3, editing=Editing(start_sigma=0.658, guidance=5.0, steps=10)),
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed configurations, at a width that takes milliseconds."""
    folder = shutil.copytree(CONFIGS, tmp_path_factory.mktemp("gpu") / "configs")
    for name, changes in NARROW.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    (folder / "hpsv2" / "open_clip_config.json").write_text(json.dumps({"model_cfg": JUDGE}))
    return folder


def bench(configs: Path, worlds: list[World], seconds: float = 3600.0) -> Bench:
    counts = {one.name: {s.counted: dict.fromkeys(PARTS, 1e9) for s in one.settings().values()} for one in worlds}
    return Bench(CPU, configs, 1, seconds, time.monotonic() + seconds, 1e12, counts)


@pytest.mark.parametrize("world", SMALL, ids=lambda world: world.model)
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"checkpointing": "none", "decode": "together"},
        {"checkpointing": "both", "guidance": "two calls", "judge": FP32, "channels_last": True},
    ],
    ids=["usual", "no checkpoints", "both"],
)
def test_a_step_trains_the_adapter(world: World, setting: dict[str, Any], configs: Path) -> None:
    step = Step(world, replace(world.usual, **setting), configs, CPU)
    before = [weight.detach().clone() for weight in step.adapter]
    phases: list[str] = []

    def part(name: str) -> nullcontext[None]:
        phases.append(name)
        return nullcontext()

    assert step(part).isfinite()
    assert tuple(phases) == PARTS
    moved = [not torch.equal(a, b) for a, b in zip(before, step.adapter, strict=True)]
    assert not any(moved[::2])  # with B = 0 no gradient reaches A
    assert sum(moved[1::2]) > 0.9 * len(moved) / 2  # but queries of a single token, whose attention is 1


def test_options_leave_the_loss_alone(configs: Path) -> None:
    """Those that are only about cost; in fp32, so that rounding can't hide a difference."""

    def loss(**changes: Any) -> float:
        torch.manual_seed(0)
        step = Step(SMALL[0], replace(SMALL[0].usual, judge=FP32, **changes), configs, CPU)
        step._model.denoiser.float()
        step._model.dtype = FP32
        return step(lambda name: nullcontext()).item()

    usual = loss()
    for changes in ({"checkpointing": "none"}, {"guidance": "two calls"}, {"channels_last": True}):
        assert loss(**changes) == pytest.approx(usual, rel=1e-5), changes


@pytest.mark.parametrize("world", SMALL, ids=lambda world: world.model)
def test_the_rollout_is_counted_by_one_of_its_steps(world: World, configs: Path) -> None:
    again, once = (
        count_step(world, replace(world.usual, checkpointing=which), configs) for which in ("blocks", "none")
    )
    assert again["rollout"] == once["rollout"] == 2 * again["gradient step"]  # of three steps the last has a gradient
    assert again["backward"] - once["backward"] > 0.8 * again["gradient step"]  # the blocks, and the decoder's
    assert again["optimizer"] == 0


def test_the_committed_counts_are_those_of_the_cases() -> None:
    """Of every case, and of the published sizes: 22 calls of a 3D UNet of 1.41 billion weights."""
    counts = json.loads(FLOPS.read_text())
    assert {world.name: {*counts[world.name]} for world in WORLDS} == {
        world.name: {setting.counted for setting in world.settings().values()} for world in WORLDS
    }
    usual = counts[MODELSCOPE.name][MODELSCOPE.usual.counted]
    assert usual["rollout"] == pytest.approx(22 * 4.887e12, rel=0.01)
    assert "| rollout |" in flops_table(counts)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_usual_step_is_the_recipes(world: World) -> None:
    recipe = load_recipe(ROOT / "jobs" / "recipes" / f"{world.model}.yaml")
    if world.height == recipe.data.height:
        assert (world.frames, world.height, world.width) == (
            recipe.data.frames,
            recipe.data.height,
            recipe.data.width,
        )
    usual, reward = world.usual, recipe.reward
    assert (world.lora, world.attenuation_unit) == (recipe.model.lora, reward.attenuation_unit)
    assert world.editing == recipe.editing.model_copy(update={"offset_noise": None})
    assert (usual.batch_size, usual.checkpointing, usual.decode) == (
        recipe.training.batch_size,
        recipe.model.checkpointing,
        reward.decode,
    )
    assert (reward.segments, reward.attenuation, recipe.model.vae_context) == (4, 1.0, 1)


def test_cases_are_told_one_by_one_and_a_failure_stops_none(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, dict[str, Any]] = {
        "batch of 1": {"batch_size": 1},
        "blocks compiled": {"compile": True},  # which a 3D UNet refuses
    }
    world = replace(SMALL[0], changes=changes)
    failing = replace(world, name="uneven", height=33, changes={})
    measuring = bench(configs, [world, failing])
    measuring.run([world, failing])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == measuring.records
    usual, uneven, single, compiled = lines[:4]
    assert (usual["case"], usual["warm"], usual["finite"], usual["steps"]) == ("usual", True, True, 1)
    assert set(usual["parts"]) == set(PARTS)
    assert usual["seconds"] == pytest.approx(sum(usual["parts"].values()))
    assert usual["clips/s"] == pytest.approx(2 / usual["seconds"])
    assert usual["TFLOP/s"] == pytest.approx(usual["clips/s"] * 6e-3)
    assert usual["of the card"] == pytest.approx(usual["TFLOP/s"])
    assert single["clips/s"] == pytest.approx(1 / single["seconds"])
    assert "multiples of 8" in uneven["failed"]
    assert "_repeated_blocks" in compiled["failed"]
    shown = markdown({**about(CPU, 1e12)}, measuring.records)
    assert "| usual | " in shown
    assert f"| blocks compiled | {compiled['failed']} |" in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows if "_repeated" not in row} == {rows[0].count("|")}


def test_what_helped_is_put_together(configs: Path) -> None:
    world = replace(SMALL[0], changes={**{f"batch of {n}": {"batch_size": n} for n in (4, 8)}, "x": {"tf32": True}})
    measuring = bench(configs, [world])
    speeds = {"usual": 1.0, "batch of 4": 1.2, "batch of 8": 1.1, "x": 1.05, "attention: flash": 3.0}
    measuring.records = [{"world": world.name, "case": name, "clips/s": speed} for name, speed in speeds.items()]
    measuring.records.append({"world": "another", "case": "batch of 8", "clips/s": 9.0})
    assert measuring.helped(world) == ["batch of 4", "x"]
    assert world.changed(["batch of 4", "x"]) == replace(world.usual, batch_size=4, tf32=True)
    measuring.records[0] = {"world": world.name, "case": "usual", "failed": "out of memory"}
    assert measuring.helped(world) == []


def test_no_case_is_begun_without_time(configs: Path) -> None:
    measuring = bench(configs, SMALL, seconds=-1.0)
    measuring.run([replace(SMALL[0], changes={})])
    assert [one["failed"] for one in measuring.records] == ["skipped: no time left"]


def test_switches_are_set_back() -> None:
    def state() -> tuple[bool, str]:
        return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    with switches(replace(MODELSCOPE.usual, attention="flash", tf32=True, autotune=True)):
        assert state() == (True, "high")
    assert state() == (False, "highest")


def test_the_rate_of_products_is_positive() -> None:
    assert 0 < matrix_rate(CPU, 32, rounds=2) < math.inf


ALONE = """
import sys
for blocked in ("ray", "deepspeed", "mlflow", "omegaconf", "av", "pyarrow", "scipy", "torchmetrics"):
    sys.modules[blocked] = None
from benchmarks.gpu.__main__ import main
main()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured for minutes")
def test_it_needs_few_libraries_and_says_that_there_is_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch finds no GPU here" in done.stderr
