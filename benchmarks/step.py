"""One optimizer step: as the release of InstructVideo makes it, and as rayvideo does. CPU, menagerie, fp32, one thread.

    python -m benchmarks.step --rounds 7 --json step.json > step.md

D = 20, the last 12 steps, K = 1, two clips. All ways take turns in one process, each round in another order, so that
other work on the machine hits all of them alike; times are medians of ratios within a round. Memory is measured once
for each way: `peak` is all tensors that are alive at once beyond the weights, `kept` the most that autograd holds.

The release's step is made of this package's parts in the release's order: clips and captions are encoded again in
every step, guidance is two calls, all frames are decoded one by one, the judge's own weights get gradients, checkpoints
are nested (the step, and in it the blocks, also the decoder's), and an average of every weight is kept. The "release,
but" lines leave out one of these each; the "rayvideo" lines are this package's trainer with its DeepSpeed engine and a
judge in process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.live import LiveBytes
from rayvideo import editing
from rayvideo.menagerie.build import WEIGHTS, training_clips
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.latents import drawn_table
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import Recipe, load_recipe
from rayvideo.rewards.pixels import clamp_pixels
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from rayvideo.serving.local import LocalPool
from rayvideo.settling import settle
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie.yaml"
PAPER = (
    "editing.steps=20",
    "editing.grad_steps=1",
    "training.workers=1",
    "training.accumulation=1",
    "training.precision=fp32",
    "training.zero_stage=0",
)
OURS = {
    "rayvideo, checkpointing none": ["model.checkpointing=none"],
    "rayvideo, checkpointing blocks": ["model.checkpointing=blocks"],
    "rayvideo, checkpointing both": ["model.checkpointing=both"],
    "rayvideo, checkpointing clips": ["model.checkpointing=clips"],
}
CLIPS, BATCH, FRAMES, SEGMENTS = 8, 2, 16, 4
MIB = 2**20

Step = Callable[[int], object]
"""Makes one optimizer step of this number."""


@dataclass(frozen=True)
class Ways:
    """What the release does and rayvideo does not."""

    encodes_again: bool = True
    two_calls: bool = True
    decodes_all: bool = True
    tunes_judge: bool = True
    nested: bool = True
    averages: bool = True


def release_step(ways: Ways) -> Step:
    """A step of the release's kind, with its own model, judge and optimizer."""
    model, judge = load_model(WEIGHTS / "pipeline"), load_judge(WEIGHTS / "judge").requires_grad_(ways.tunes_judge)
    model.denoiser = add_lora(model.denoiser, load_recipe(RECIPE).model.lora, seed=0)
    if ways.nested:
        model.enable_checkpointing()
    optimizer = torch.optim.AdamW(lora_parameters(model.denoiser).values(), lr=1e-5, weight_decay=0.0)
    average = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}
    clips, captions = training_clips(CLIPS, seed=100)
    chain = model.schedule.chain(20, 0.6)
    posteriors = [model.encode_frames(clip[None]) for clip in clips]
    embeddings = model.encode_prompts([*captions, ""])

    def step(number: int) -> None:
        chosen = [(number * BATCH + i) % CLIPS for i in range(BATCH)]
        generators = [torch.Generator().manual_seed(number * BATCH + i) for i in range(BATCH)]
        names = [captions[i] for i in chosen]
        if ways.encodes_again:
            latents = model.encode_frames(clips[chosen]).sample(generators)
            spoken, empty = model.encode_prompts(names), model.encode_prompts([""])
        else:
            parts = [posteriors[i].sample([one]) for i, one in zip(chosen, generators, strict=True)]
            latents, spoken, empty = torch.cat(parts), embeddings[chosen], embeddings[-1:]
        noise = editing.offset_noise(latents, 0.1, generators)
        noisy = model.schedule.corrupt(latents, noise, chain.levels[0])
        if ways.two_calls:

            def predict(latents: Tensor, timestep: Tensor) -> Tensor:
                unconditional = model.predict(latents, timestep, empty.expand_as(spoken))
                return unconditional + 3.0 * (model.predict(latents, timestep, spoken) - unconditional)

        else:
            predict = model.guided(spoken, empty, 3.0)
        last = frozenset({chain.steps - 1})
        edited = editing.run_chain(predict, noisy, model.schedule, chain, grad_on=last, checkpoint=ways.nested)
        drawn = sample_segments(BATCH, FRAMES, SEGMENTS, generator=generators)
        if ways.decodes_all:
            every = [model.decode_frames(edited, torch.full((BATCH, 1), frame)) for frame in range(FRAMES)]
            pixels = torch.cat(every, 1)[torch.arange(BATCH)[:, None], drawn]
        else:
            pixels = model.decode_frames(edited, drawn)
        frames = clamp_pixels(pixels, "hard").flatten(0, 1)
        scores = judge.score(frames, [name for name in names for _ in range(SEGMENTS)]).unflatten(0, drawn.shape)
        loss = (1 - video_reward(scores, attenuation(drawn, FRAMES))).mean()
        optimizer.zero_grad()
        judge.zero_grad()
        loss.backward()
        optimizer.step()
        if ways.averages:
            with torch.no_grad():
                for name, weight in model.denoiser.state_dict().items():
                    average[name].copy_(average[name] * 0.9999 + weight * (1 - 0.9999))

    return step


def our_step(overrides: Sequence[str], folder: Path) -> Step:
    """A step of the trainer with a recipe's settings."""
    recipe: Recipe = settle(load_recipe(RECIPE, [*PAPER, *overrides]), "training")
    folder.mkdir()
    table = drawn_table(load_model(recipe.model.path), CLIPS, folder)
    trainer = assemble(
        recipe,
        table,
        LocalPool(recipe.reward.judges),
        torch.device("cpu"),
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
    ).trainer
    return lambda number: trainer.step(number + 1)


def ways() -> dict[str, Ways]:
    """The release, and the release without one of its ways each, and without any."""
    whole = Ways()
    names = [field.name for field in fields(Ways)]
    said = {
        "encodes_again": "clips and captions encoded once",
        "two_calls": "guidance in one call",
        "decodes_all": "only the judged frames decoded",
        "tunes_judge": "judge frozen",
        "nested": "no checkpoints",
        "averages": "no average of the weights",
    }
    return {
        "release": whole,
        **{f"release, but {said[name]}": replace(whole, **{name: False}) for name in names},
        "release, but all of these": Ways(*[False] * len(names)),
    }


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's step in every round but the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        order = list(steps)
        random.Random(number).shuffle(order)
        for name in order:
            began = time.perf_counter()
            steps[name](number)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of distinct tensors that autograd holds at once, weights not among them."""

    def __init__(self) -> None:
        self.most, self._now = 0, 0
        self._alive: dict[int, int] = {}
        super().__init__(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def add(self, tensor: Tensor) -> None:
        """One more holds this tensor's storage."""
        key = tensor.untyped_storage().data_ptr()
        self._alive[key] = self._alive.get(key, 0) + 1
        if self._alive[key] == 1 and not isinstance(tensor, torch.nn.Parameter):
            self._now += tensor.untyped_storage().nbytes()
            self.most = max(self.most, self._now)

    def drop(self, tensor: Tensor) -> None:
        """One less does."""
        key = tensor.untyped_storage().data_ptr()
        self._alive[key] -= 1
        if not self._alive[key] and not isinstance(tensor, torch.nn.Parameter):
            self._now -= tensor.untyped_storage().nbytes()


class _Held:
    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.tensor, self._kept = tensor, kept
        kept.add(tensor)

    def __del__(self) -> None:
        self._kept.drop(self.tensor)


def memory(step: Step) -> tuple[float, float]:
    """MiB of a step, measured in its second run: tensors alive at once beyond those before it, and kept by autograd."""
    step(0)
    alive, kept = LiveBytes(), Kept()
    with alive:
        step(1)
    with kept:
        step(2)
    return alive.peak / MIB, kept.most / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        steps = {name: release_step(chosen) for name, chosen in ways().items()}
        steps |= {name: our_step(chosen, Path(folder, str(i))) for i, (name, chosen) in enumerate(OURS.items())}
        seconds = measure(steps, arguments.rounds)
        sizes = {name: memory(step) for name, step in steps.items()}
        dist.destroy_process_group()
    first = seconds["release"]
    rows = {
        name: {
            "seconds": statistics.median(each),
            "of the release": statistics.median(a / b for a, b in zip(each, first, strict=True)),
            "peak MiB": sizes[name][0],
            "kept MiB": sizes[name][1],
        }
        for name, each in seconds.items()
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    base = rows["release"]
    print("| step | s | of the release's | peak, MiB | of the release's | kept, MiB | of the release's |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [f"{row['seconds']:.2f}", f"{row['of the release']:.2f}"]
        for key in ("peak MiB", "kept MiB"):
            cells += [f"{row[key]:.0f}", f"{row[key] / base[key]:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
