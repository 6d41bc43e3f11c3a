"""Workers follow the nodes of a cluster, and nobody can tell from the results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file

from rayvideo.recipe import parse_recipe
from tests.prepared import save_prepared

STEPS = 16


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_workers_follow_the_nodes(tiny_pipeline, tmp_path):
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"prepared": str(tmp_path / "latents"), "frames": 4, "height": 64, "width": 64},
        "editing": {"steps": 5},
        "reward": {
            "judges": [{"name": "paced", "type": "tests.cluster.elastic:Paced", "checkpoint": str(tmp_path / "hurry")}],
            "segments": 2,
        },
        "training": {
            "workers": {"min": 1, "max": 2, "check_every_s": 1},
            "batch_size": 1,
            "accumulation": 2,
            "steps": STEPS,
            "precision": "fp32",
            "lr": 1e-3,
            "checkpoint_every": 99,
            "max_failures": 0,
        },
        "tracking": {"run_name": "changing"},
        "storage": str(tmp_path / "runs"),
    }
    save_prepared(parse_recipe(tree))
    (tmp_path / "recipe.json").write_text(json.dumps(tree))
    own = mkdtemp(prefix="ray", dir="/tmp")  # sockets below it have room for few letters
    try:
        subprocess.run(
            [sys.executable, "-m", "tests.cluster.elastic", str(tmp_path / "recipe.json")],
            check=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "RAY_TMPDIR": own},
        )
    finally:
        shutil.rmtree(own, ignore_errors=True)

    changing, fixed = tmp_path / "runs/changing", tmp_path / "runs/fixed"
    states = [json.loads(path.read_text()) for path in sorted(changing.glob("checkpoints/*/state.json"))]
    assert [state["workers"] for state in states] == [1, 2, 1]
    assert states[-1]["step"] == STEPS
    curve, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (changing, fixed)
    )
    assert [line["step"] for line in curve] == list(range(1, STEPS + 1)), "steps were lost or done twice"
    for key in ("reward", "gradient_norm"):
        assert [line[key] for line in curve] == pytest.approx([line[key] for line in wanted], rel=1e-4)
    first, second = (load_file(run / "adapter/adapter_model.safetensors") for run in (changing, fixed))
    error = torch.cat([(first[name] - second[name]).flatten() for name in second])
    size = torch.cat([weight.flatten() for name, weight in second.items() if "lora_B" in name])
    assert size.norm() > 0
    assert error.norm() < 1e-3 * size.norm()
