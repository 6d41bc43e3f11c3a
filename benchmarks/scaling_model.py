"""A step on many GPUs, put together of counted parts and named rates: how much of it is computing, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import World
from benchmarks.gpu.networks import build_judge, build_model
from rayvideo.models.lora import add_lora, parameter_count
from rayvideo.planning.estimate import Rates
from rayvideo.planning.judges import ask
from rayvideo.planning.rates import ASSUMED

CONFIGS = Path(__file__).parent / "configs"
FLOPS = Path(__file__).parent / "gpu/flops.json"
SEGMENTS = 4
FP32 = 4
"""Bytes of a number: of gradients, of what goes to the judges by default, of latents on their way."""
LIMIT = 4096
"""Workers up to which is looked."""
COMPUTE, OTHER = "compute", "all but compute"
SHARES = (0.1, 0.5)


@dataclass(frozen=True)
class Counted:
    """What a clip takes, and the adapter."""

    flops: float
    """Of a clip on its worker, the judge not among them."""
    judge_flops: float
    """Of a clip's frames at the judge, with their gradients."""
    judge_bytes: int
    """Of a clip's frames on their way there, and of the gradients on their way back."""
    clip_bytes: int
    """Of a clip's posterior and its caption's embedding."""
    adapter: int
    """Numbers."""
    batch: int
    """Clips of a micro-batch."""


@dataclass(frozen=True)
class Cluster:
    """What machines do in a second. All of it is assumed, unless a source is named."""

    flops: float = ASSUMED["bf16"]
    """Of a GPU, in this step."""
    judge_flops: float = ASSUMED["bf16"]
    """Of a copy of the judge, on a GPU of its own."""
    judge_copies: int = 1
    gpus: int = 8
    """Of a machine."""
    link: float = Rates(1.0, "").link
    """Bytes between GPUs of a machine, and"""
    network: float = 12.5e9
    """into or out of a machine: 100 Gbit."""
    latency: float = 20e-6
    """Seconds of one message of an all-reduce."""
    calls: float = 128.0
    """Judge calls that one router passes on: measured on two CPU cores, docs/benchmarks.md."""
    write: float = 1e9
    """Bytes of a checkpoint to a worker's disk; uploads go on while it trains."""
    checkpoint_every: int = 100
    """Steps."""


def counted(world: World) -> Counted:
    """Counts of the usual step of one of benchmarks/gpu's models, on the meta device; FLOPs are the committed ones."""
    meta = torch.device("meta")
    model = build_model(world, world.usual, CONFIGS, meta)
    judge = build_judge(world.usual.judge, CONFIGS, meta)
    height, width = judge.size
    frames = (SEGMENTS, 3, min(height, world.height), min(width, world.width))
    asked = ask(judge.eval().requires_grad_(False), frames, gradient=True)
    step = json.loads(FLOPS.read_text())[world.name][world.usual.counted]
    latents = prod(model.latent_shape(world.frames, world.height, world.width))
    embedding = world.tokens * model.prompt_width
    return Counted(
        flops=sum(step.values()) - asked.flops,
        judge_flops=asked.flops,
        judge_bytes=2 * FP32 * prod(frames),
        clip_bytes=FP32 * (2 * latents + embedding),
        adapter=parameter_count(add_lora(model.denoiser, world.lora, seed=0)),
        batch=world.usual.batch_size,
    )


def parts(of: Counted, cluster: Cluster, workers: int, clips: float) -> dict[str, float]:
    """Seconds of a step by part, as if none of them overlapped, on one worker a GPU with so many `clips` each.

    The all-reduce is a ring, whose slowest link all bytes pass: between machines, once there are several. All clips'
    frames go into the machines of the judge's copies, and their latents come from one.
    """
    everything = workers * clips
    slowest = cluster.link if workers <= cluster.gpus else min(cluster.link, cluster.network)
    ring = 2 * (workers - 1) * (FP32 * of.adapter / workers / slowest + cluster.latency)
    copies = cluster.judge_copies
    # Adapter and AdamW's two moments, as one worker has them with stage 0: an upper bound.
    saved = FP32 * of.adapter * 3
    return {
        COMPUTE: clips * of.flops / cluster.flops,
        "judge: compute": everything * of.judge_flops / (copies * cluster.judge_flops),
        "judge: frames and gradients": everything * of.judge_bytes / (copies * cluster.network),
        "judge: calls through the router": everything / of.batch / cluster.calls,
        "all-reduce of the adapter's gradient": ring,
        "latents and embeddings": everything * of.clip_bytes / cluster.network,
        "checkpoint": saved / cluster.write / cluster.checkpoint_every,
    }


def first_above(share: float, part: str, step: Callable[[int], dict[str, float]], limit: int = LIMIT) -> int | None:
    """The fewest workers with which a part, or `OTHER`, takes this share of the step; None: not with up to `limit`."""
    return next((workers for workers in range(1, limit + 1) if shares(step(workers))[part] >= share), None)


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Of the step, of each part and of all parts but computing."""
    whole = sum(seconds.values())
    of = {part: each / whole for part, each in seconds.items()}
    return {**of, OTHER: 1 - of[COMPUTE]}


@dataclass(frozen=True)
class Scaling:
    """Steps of one model with more and more GPUs."""

    name: str
    counted: Counted
    cluster: Cluster
    clips: int
    """Of each worker; or, if `fixed`, of all of them together."""
    fixed: bool

    def step(self, workers: int) -> dict[str, float]:
        """Seconds by part."""
        return parts(self.counted, self.cluster, workers, self.clips / workers if self.fixed else self.clips)

    @property
    def limit(self) -> int:
        """Workers that there is work for."""
        return self.clips if self.fixed else LIMIT

    def stops(self) -> dict[str, dict[str, int | None]]:
        """Part -> share of the step -> from how many workers on."""
        return {
            part: {f"{share:.0%}": first_above(share, part, self.step, self.limit) for share in SHARES}
            for part in shares(self.step(1))
            if part != COMPUTE
        }

    def table(self, workers: list[int]) -> str:
        """Markdown: shares of the step, and from how many GPUs on a part is large."""
        sizes = [size for size in workers if size <= self.limit]
        steps, stops = {size: self.step(size) for size in sizes}, self.stops()
        head = [*(f"{size} GPUs" for size in sizes), *(f"{share:.0%} from" for share in SHARES)]
        rows = [f"| {self.title} | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for part in shares(steps[sizes[0]]):
            cells = [f"{shares(seconds)[part]:.2%}" for seconds in steps.values()]
            cells += (
                [str(at or f"> {self.limit}") for at in stops[part].values()] if part in stops else [""] * len(SHARES)
            )
            rows.append(f"| {part} | " + " | ".join(cells) + " |")
        cells = [f"{sum(seconds.values()):.3g}" for seconds in steps.values()]
        return "\n".join([*rows, "| step, s | " + " | ".join([*cells, *[""] * len(SHARES)]) + " |"])

    @property
    def title(self) -> str:
        """What is kept."""
        return f"{self.name}, {self.clips} clips {'in all' if self.fixed else 'a GPU'}"

    def as_json(self, workers: list[int]) -> dict[str, Any]:
        """Everything that went in, and what came out."""
        return {
            **asdict(self),
            "seconds": {size: self.step(size) for size in workers if size <= self.limit},
            "from how many GPUs on": self.stops(),
        }
