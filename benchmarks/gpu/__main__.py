"""One training step on a GPU with real-size models and random weights: clips a second, FLOP/s, memory, where time goes.

    python -m benchmarks.gpu --json gpu.json > gpu.md
    python -m benchmarks.gpu --flops

Run it in the repository's folder, which need not be installed. Needs torch >= 2.11, diffusers, peft, open_clip and
pydantic: no Ray, DeepSpeed or MLflow, no network, no weights.

A case is the step of a recipe in jobs/recipes/, with denoiser and judge in bf16 on one card, and one thing changed. It
is printed as a line of JSON once it is measured, the tables at the end: a run that is killed leaves figures. Cases for
which no time is left are skipped. FLOPs are those that are computed, what checkpointing repeats among them; "of the
card" is against a bf16 product of two large matrices. --flops counts them anew, without a GPU, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import peft
import torch

from benchmarks.gpu.bench import TERA, Bench, matrix_rate
from benchmarks.gpu.cases import WORLDS
from benchmarks.gpu.flops import count
from benchmarks.gpu.table import flops_table, markdown

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
FLOPS = HERE / "flops.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--only", default="", help="models and sizes whose name has this in it")
    parser.add_argument("--minutes", type=float, default=7.5, help="that all cases together may take")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds that the steps of a case may take")
    parser.add_argument("--repeat", type=int, default=3, help="measured steps of a case, after one that warms up")
    parser.add_argument("--flops", action="store_true", help=f"write {FLOPS.name} anew, and nothing else")
    arguments = parser.parse_args()
    worlds = tuple(world for world in WORLDS if arguments.only in world.name)
    if arguments.flops:
        FLOPS.write_text(json.dumps(count(WORLDS, CONFIGS), indent=2) + "\n")
        print(flops_table(json.loads(FLOPS.read_text())))
        return
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here, and nothing else has figures worth having; --flops needs none")
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device("cuda")
    run = about(device, matrix_rate(device, 8192))
    print(json.dumps(run), flush=True)
    flops = json.loads(FLOPS.read_text())
    rate = run["matrix TFLOP/s"] * TERA
    bench = Bench(device, CONFIGS, arguments.repeat, arguments.budget, deadline, rate, flops)
    bench.run(worlds)
    if arguments.json:
        arguments.json.write_text(json.dumps({**run, "cases": bench.records}, indent=2) + "\n")
    print(f"\n{markdown(run, bench.records)}")


def about(device: torch.device, rate: float) -> dict[str, Any]:
    """Date, card and versions."""
    return {
        "date": date.today().isoformat(),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "matrix TFLOP/s": rate / TERA,
        "versions": {
            "python": platform.python_version(),
            **{library.__name__: str(library.__version__) for library in (torch, diffusers, peft, open_clip)},
        },
    }


if __name__ == "__main__":
    main()
