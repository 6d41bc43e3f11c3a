"""What a run's workers import: the code that they are sent, and nothing that happens to lie in the current folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.job_config import JobConfig

from rayvideo import own_modules

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where `ray job submit` tells the driver the job's runtime_env."""


class OwnPath(JobConfig):
    """Ray puts the driver's folder and the current one before everything else on the workers' path, unless they have a
    `working_dir`: a `statistics.py` or `queue.py` there would take the place of Python's own.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def runtime_env(packages: Sequence[Path] = ()) -> dict[str, Any]:
    """The runtime_env with which a cluster's workers get `packages` and the user's own modules.

    A Ray that this process starts needs none: its workers find them where they are.
    """
    modules = [str(path) for path in (*packages, *own_modules.places().values())]
    if not modules:
        return {}
    others = json.loads(os.environ.get(JOB, "{}")).get("runtime_env", {}).get("py_modules", [])
    if others:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # or Ray refuses that both job and driver name modules
    return {"py_modules": [*others, *modules]}
