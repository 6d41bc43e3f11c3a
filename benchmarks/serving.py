"""Judges in actors: what a trainer waits for them, and what our own router costs against Ray Serve. CPU, menagerie.

    python benchmarks/serving.py overlap --steps 5 > overlap.md
    python benchmarks/serving.py calls --calls 50 > calls.md      # Ray Serve needs the extra packages of ray[serve]

Prints Markdown. The ways that are compared take turns, so that other work on the machine hits all of them alike;
medians are of all turns.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from rayvideo.connection import ENVIRONMENT
from rayvideo.data.table import LatentTable
from rayvideo.menagerie.latents import drawn_table
from rayvideo.models import load_model
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.rewards import Reward, load_reward
from rayvideo.sections import Judge
from rayvideo.serving.judging import judge_rows
from rayvideo.serving.local import LocalPool
from rayvideo.serving.pool import RewardPool
from rayvideo.settling import settle
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "jobs/recipes/menagerie.yaml"


class Mean(Reward):
    """A judge that costs nothing, so that what remains is the way there and back."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Mean:
        """There is nothing to load."""
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean squares; a caption that names a file which exists removes it and kills the process."""
        for fuse in {prompt for prompt in prompts if prompt.startswith("/")}:
            if os.path.exists(fuse):
                os.unlink(fuse)
                os.kill(os.getpid(), signal.SIGKILL)
        return frames.square().flatten(1).mean(1)


def overlap(steps: int, overrides: Sequence[str]) -> None:
    """Share of an optimizer step for which the trainer waits: with and without overlap, and with judges in process."""
    fixed = ["training.workers=1", "training.zero_stage=2", *overrides]
    recipe = settle(load_recipe(RECIPE, ["training.accumulation=4", *fixed]), "training")
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        table = drawn_table(load_model(recipe.model.path, family=recipe.model.family), 16, Path(folder))
        pool = RewardPool(recipe.reward.judges)
        pool.wait_until_ready()
        trainers = {
            way: _trainer(recipe, table, judges, ahead)
            for way, judges, ahead in (
                ("remote, with overlap", pool, 1),
                ("remote, without", pool, 0),
                ("in process", LocalPool(recipe.reward.judges), 0),
            )
        }
        seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for step in range(steps + 1):
            for way, trainer in trainers.items():
                values = trainer.step(step + 1)
                if step:  # the first one warms up
                    seconds[way].append({phase: values[f"seconds/{phase}"] for phase in ("step", "judge")})
        pool.close()
        dist.destroy_process_group()
    print(f"{recipe.training.accumulation} micro-batches of {recipe.training.batch_size} clips, {steps} steps each.\n")
    print("| judge | step, s | waits for it | step against the first line |\n|---|---|---|---|")
    base = statistics.median(each["step"] for each in seconds["remote, with overlap"])
    for way, runs in seconds.items():
        whole = statistics.median(each["step"] for each in runs)
        share = statistics.median(each["judge"] / each["step"] for each in runs)
        print(f"| {way} | {whole:.2f} | {share:.1%} | {whole / base:.2f} |")


def _trainer(recipe: Recipe, table: LatentTable, judges: RewardPool, ahead: int) -> Trainer:
    """One of the recipe, that makes so many micro-batches ahead of the one that is judged."""
    trainer = assemble(
        recipe,
        table,
        judges,
        torch.device("cpu"),
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
    ).trainer
    trainer._ahead = ahead
    return trainer


def calls(count: int) -> None:
    """Start, latency, throughput and recovery of one judge that costs nothing, in our pool and in Ray Serve."""
    started = {}
    began = time.perf_counter()
    pool = RewardPool([Judge(name="mean", type="benchmarks.serving:Mean")])
    pool.wait_until_ready()
    started["own actors"] = time.perf_counter() - began
    began = time.perf_counter()
    ask_serve = _serve()
    started["Ray Serve"] = time.perf_counter() - began

    def ask_own(frames: np.ndarray, prompts: list[str]) -> Any:
        pixels = torch.from_numpy(frames).requires_grad_()
        return pool.score(pixels, prompts)

    ways: dict[str, Callable[[np.ndarray, list[str]], Any]] = {"own actors": ask_own, "Ray Serve": ask_serve}
    latency: dict[tuple[str, int], list[float]] = defaultdict(list)
    several: dict[str, list[float]] = defaultdict(list)
    recovery: dict[str, list[float]] = defaultdict(list)
    for size in (64, 256):
        frames = np.random.default_rng(0).random((8, 3, size, size), np.float32)
        for number in range(count + 3):
            for way, ask in ways.items():
                began = time.perf_counter()
                ask(frames, ["red cat"] * 8)
                if number >= 3:
                    latency[way, size].append(time.perf_counter() - began)
    asker = ray.remote(num_cpus=0)(_ask_often)
    for _ in range(3):
        for way, ask in ways.items():
            several[way].append(4 * count / max(ray.get([asker.remote(ask, count) for _ in range(4)])))
    for _ in range(3):
        for way, ask in ways.items():
            with TemporaryDirectory() as folder:
                fuse = Path(folder, "fuse")
                fuse.touch()
                began, failures = time.perf_counter(), 0
                while True:
                    try:
                        ask(frames, [str(fuse)] * 8)
                        break
                    except Exception:
                        failures += 1
                        time.sleep(0.1)
                recovery[way].append(time.perf_counter() - began)
                recovery[f"{way}, failed calls"].append(failures)
    print(f"Median of {count} calls of 8 frames; Python {platform.python_version()}, Ray {ray.__version__}.\n")
    print("| | own actors | Ray Serve |\n|---|---|---|")
    rows: dict[str, Callable[[str], str]] = {
        "from nothing to ready, s": lambda way: f"{started[way]:.1f}",
        "call, 8 frames of 64×64 (0.4 MB), ms": lambda way: f"{1000 * statistics.median(latency[way, 64]):.1f}",
        "call, 8 frames of 256×256 (6.3 MB), ms": lambda way: f"{1000 * statistics.median(latency[way, 256]):.1f}",
        "calls per second of four callers": lambda way: f"{statistics.median(several[way]):.0f}",
        "call in which the process is killed, s": lambda way: f"{statistics.median(recovery[way]):.1f}",
        "errors that its caller sees": lambda way: f"{statistics.median(recovery[way + ', failed calls']):.0f}",
    }
    for name, cell in rows.items():
        print(f"| {name} | {cell('own actors')} | {cell('Ray Serve')} |")
    pool.close()


def _ask_often(ask: Callable[[np.ndarray, list[str]], Any], count: int) -> float:
    frames = np.random.default_rng(0).random((8, 3, 64, 64), np.float32)
    ask(frames, ["red cat"] * 8)
    began = time.perf_counter()
    for _ in range(count):
        ask(frames, ["red cat"] * 8)
    return time.perf_counter() - began


def _serve() -> Callable[[np.ndarray, list[str]], Any]:
    from ray import serve

    @serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}, health_check_period_s=1)
    class Served:
        def __init__(self) -> None:
            self.reward = load_reward(Judge(name="mean", type="benchmarks.serving:Mean"))

        @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
        async def __call__(self, requests: list[tuple[np.ndarray, list[str]]]) -> list[Any]:
            frames = torch.cat([torch.tensor(each[0]) for each in requests])
            prompts = [caption for each in requests for caption in each[1]]
            scores, slopes = judge_rows(self.reward, frames, prompts, True, torch.device("cpu"), 8)
            assert slopes is not None
            await asyncio.sleep(0)
            return [
                (own.numpy(), slope.numpy())
                for own, slope in zip(
                    scores.split([len(each[0]) for each in requests]),
                    slopes.split([len(each[0]) for each in requests]),
                    strict=True,
                )
            ]

    serve.start(proxy_location="Disabled")  # its calls come through a handle, not over HTTP
    handle = serve.run(Served.bind(), name="judge", route_prefix=None)  # type: ignore[attr-defined]

    def ask(frames: np.ndarray, prompts: list[str]) -> Any:
        return handle.remote((frames, prompts)).result(timeout_s=300)

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overlap", "calls"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Replicas import this file.
    own = {"env_vars": {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}}
    os.chdir(ROOT)
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        runtime_env=own,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    print(f"Load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n")
    if arguments.what == "overlap":
        overlap(arguments.steps, arguments.overrides)
    else:
        calls(arguments.calls)


if __name__ == "__main__":
    main()
