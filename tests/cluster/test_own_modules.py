"""A Ray of this machine: workers find the user's own modules, and nothing of theirs hides what is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.documents import ROOT, block_of

DRIVER = """
import json, sys
import ray, torch
from rayvideo import own_modules
from rayvideo.connection import start_ray
from rayvideo.evaluation.metrics import load_features
from rayvideo.recipe import load_recipe
from rayvideo.serving.pool import RewardPool

recipe = load_recipe(sys.argv[1])
own_modules.make_importable(recipe, sys.argv[1])
start_ray(recipe)
pool = RewardPool(recipe.reward.judges)
frames = torch.zeros(2, 3, 8, 8)
frames[1, 2] = 1
pending = pool.submit(frames.requires_grad_(), ["cat", "dog"])
pool.result(pending).sum().backward()

@ray.remote(num_cpus=0)
def elsewhere():
    import statistics
    return statistics.fmean([1, 2]), load_features(recipe.evaluation.features).features(frames).shape

told = {name: raw.tolist() for name, raw in pending.raw.items()}
told |= {"slope": frames.grad.abs().sum().item(), "elsewhere": ray.get(elsewhere.remote())}
pool.close()
ray.shutdown()
print(json.dumps(told))
"""


@pytest.mark.timeout(600)
def test_judges_and_features_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "my_rewards.py").write_text(block_of("README.md", "python", "(Reward)"))
    (tmp_path / "my_features.py").write_text(
        "class Own:\n    load = classmethod(lambda cls, checkpoint: cls())\n    eval = lambda self: self\n"
        "    features = lambda self, frames: frames.flatten(1)\n"
    )
    (tmp_path / "statistics.py").write_text("raise RuntimeError('nobody asked for it')")
    blue = {"type": "my_rewards:Blueness", "weight": 0.1}
    tree = {
        "model": {"path": "m"},
        "data": {"manifest": "list.txt"},
        "reward": {"judges": [{"name": "a", **blue}, {"name": "b", **blue, "runtime_env": {"env_vars": {"A": "1"}}}]},
        "evaluation": {"features": {"type": "my_features:Own", "reference": "list.txt"}},
    }
    (tmp_path / "recipes" / "mine.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "recipes" / "driver.py").write_text(DRIVER)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "recipes/driver.py", "recipes/mine.yaml"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["a"] == told["b"] == [0, 1]
    assert told["slope"] > 0
    assert told["elsewhere"] == [1.5, [2, 192]]
