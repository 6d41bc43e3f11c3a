"""The core (recipe, editing, models, rewards) must stay usable without the libraries of the cluster."""

import subprocess
import sys

CORE = """
import importlib, pkgutil, sys
for blocked in ("ray", "deepspeed", "mlflow"):
    sys.modules[blocked] = None
import rayvideo.models, rayvideo.rewards
names = ["rayvideo.recipe", "rayvideo.editing", "rayvideo.precision", "rayvideo.seeding"]
for package in (rayvideo.models, rayvideo.rewards):
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(*names)
"""


def test_the_core_imports_without_ray_deepspeed_and_mlflow():
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"rayvideo.models.modelscope", "rayvideo.models.lora", "rayvideo.rewards.hpsv2"} <= set(done.stdout.split())


CONTROLLER = """
import sys
import rayvideo.training.ray_train.failures, rayvideo.training.ray_train.preemption
import rayvideo.training.ray_train.retention, rayvideo.training.ray_train.work
print(*{"torch", "transformers", "peft", "mlflow"} & set(sys.modules))
"""


def test_what_ray_trains_controller_imports_is_light():
    """It starts ahead of the workers, which wait for it."""
    done = subprocess.run([sys.executable, "-c", CONTROLLER], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
