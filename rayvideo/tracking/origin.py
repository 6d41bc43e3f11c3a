"""What a run was made with: the command, the commit of this package, and the versions of Python and of libraries."""

from __future__ import annotations

import getpass
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mlflow.entities import SourceType
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

import rayvideo
from rayvideo.paths import without_login

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "deepspeed", "mlflow")
LONGEST_TAG = 5000  # characters of a tag that every server takes


def versions() -> dict[str, str]:
    """Python and the libraries whose releases change results."""
    return {"version.python": platform.python_version(), **{f"version.{name}": version(name) for name in LIBRARIES}}


def source() -> dict[str, str]:
    """Tags of the program that runs and of who started it: the columns Source and User of MLflow's table."""
    return {
        MLFLOW_SOURCE_NAME: sys.argv[0] or "<console>",
        MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.LOCAL),
        MLFLOW_USER: _user(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may be a number without a name
        return "unknown"


def overrides(typed: Sequence[str]) -> dict[str, str]:
    """The tag of what was typed after the recipe, so that runs are found by it; without logins in addresses."""
    words = (f"{key}={without_login(value)}" for key, _, value in (word.partition("=") for word in typed))
    return {"overrides": " ".join(words)[:LONGEST_TAG]} if typed else {}


def commit() -> dict[str, str]:
    """The commit of this package's repository, `-dirty` with uncommitted changes; nothing when it has none."""
    here = Path(rayvideo.__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # `ls-files` fails where this package is installed inside another project's repository, whose commit is not ours.
    try:
        for command in (["ls-files", "--error-unmatch", "recipe.py"], describe):
            done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    return {"commit": done.stdout.strip()}
