"""Run folders as jobs/finetune.py and jobs/evaluate.py leave them, with clips of one colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rayvideo.data.video import write_clip
from rayvideo.evaluation.comparison.choose import choose
from rayvideo.evaluation.comparison.runs import Run, read_run
from rayvideo.recipe import parse_recipe, shareable

ODD = "a </script><script>alert(1)</script> cat & \"dog\" 'é'"
CAPTIONS = (ODD, "red cat", "blue dog")
MANY = (*CAPTIONS, "green bird", "grey mouse", "white fox")
"""Enough for an interval."""
MLFLOW = {"uri": "sqlite:////nowhere/mlflow.db", "experiment_id": "1", "run_id": "0" * 32}


def write_run(
    storage: Path,
    name: str,
    *,
    gain: float = 0.1,
    captions: Sequence[str] = CAPTIONS,
    seeds: Sequence[int] = (0, 1),
    steps: int = 20,
    colour: int = 120,
    lr: float = 1e-4,
    checkpoint: str = "other.pt",
    mlflow: dict[str, str] | None = None,
) -> Path:
    """A run whose judge's scores are the base's + `gain`; clips of the first seed are kept."""
    folder = storage / name
    recipe = parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "training": {"lr": lr},
            "evaluation": {
                "judges": [{"name": "held_out", "checkpoint": checkpoint}],
                "sets": {"new": "new.txt"},
                "seeds": list(seeds),
                "steps": [steps],
            },
            "tracking": {"run_name": name},
        }
    )
    rows: list[dict[str, Any]] = []
    for number, caption in enumerate(captions):
        for seed in seeds:
            for variant, added in (("base", 0.0), ("tuned", gain)):
                file = f"report/clips/{number:02d}-{variant}.mp4" if seed == seeds[0] else None
                if file:
                    shade = 40 + number if variant == "base" else colour + number
                    write_clip(folder / file, np.full((4, 32, 32, 3), shade, np.uint8))
                score = 0.2 + 0.01 * number + added + 0.001 * seed
                row = {"set": "new", "caption": caption, "seed": seed, "steps": steps, "variant": variant, "file": file}
                rows.append({**row, "judge": score, "held_out": 1 - score, "motion": 0.3})
    pq.write_table(pa.Table.from_pylist(rows), folder / "clips.parquet")
    tree = shareable(recipe)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    summary = {"finished": True, "evaluation": {"mlflow": mlflow or MLFLOW, "recipe": tree}}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": step, "reward": gain * step, "score/judge": 0.2 + gain * step} for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read(storage: Path, *words: str) -> list[Run]:
    return [read_run(label, side) for label, side in choose(list(words), str(storage)).items()]
