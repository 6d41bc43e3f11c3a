"""How pixels are clamped before the judge: straight-through against hard, on the menagerie, in one process.

    python benchmarks/clamp.py --steps 150 --seeds 3

Same clips, noise and learning rate for both. Prints Markdown: gain of the training judge and of the held-out one over
the base, in standard deviations of the base's clips (mean ± standard deviation over seeds), and the share of pixel
values at 0 or 1.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Literal

import torch
from torch import Tensor

from rayvideo.menagerie.ascent import ascend
from rayvideo.menagerie.build import WEIGHTS, training_clips
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.quality import generate, score
from rayvideo.menagerie.world import evaluation_captions
from rayvideo.models import load_model
from rayvideo.paths import path_argument

MODES: tuple[Literal["straight_through", "hard"], ...] = ("straight_through", "hard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs per clamp")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=2, help="clips per step")
    parser.add_argument("--clips", type=int, default=64, help="clips to train on")
    parser.add_argument("--captions", type=int, default=48, help="in-domain captions that are evaluated")
    parser.add_argument("--weights", type=path_argument, default=WEIGHTS, help="folder of the menagerie's weights")
    arguments = parser.parse_args()

    pipeline = arguments.weights / "pipeline"
    judges = {name: load_judge(arguments.weights / name) for name in ("judge", "held_out")}
    clips, names = training_clips(arguments.clips, seed=100)
    captions = evaluation_captions()["in_domain"][: arguments.captions]
    base = generate(load_model(pipeline), captions)
    before = {name: score(judge, base, captions) for name, judge in judges.items()}

    print(f"{arguments.steps} steps, lr {arguments.lr:g}, {arguments.seeds} seeds, {len(captions)} captions.\n")
    print("| clamp | judge, sd | held_out, sd | saturated |\n|---|---|---|---|")
    print(f"| base | 0 | 0 | {_saturated(base):.4f} |")
    for mode in MODES:
        gains: dict[str, list[float]] = {name: [] for name in judges}
        saturated = []
        for seed in range(arguments.seeds):
            model = ascend(
                pipeline,
                judges["judge"],
                clips,
                names,
                steps=arguments.steps,
                lr=arguments.lr,
                batch=arguments.batch,
                clamp=mode,
                seed=seed,
            )
            tuned = generate(model, captions)
            saturated.append(_saturated(tuned))
            for name, judge in judges.items():
                gain = score(judge, tuned, captions).mean() - before[name].mean()
                gains[name].append((gain / before[name].std()).item())
        cells = [_cell(gains["judge"], "+.3f"), _cell(gains["held_out"], "+.3f"), _cell(saturated, ".4f")]
        print(f"| {mode} | " + " | ".join(cells) + " |", flush=True)


def _saturated(clips: Tensor) -> float:
    return torch.logical_or(clips == 0, clips == 1).float().mean().item()


def _cell(values: list[float], form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


if __name__ == "__main__":
    main()
