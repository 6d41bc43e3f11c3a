"""What a run was made with: the commit of this package, and the versions of Python and of libraries."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import rayvideo

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "deepspeed", "mlflow")


def versions() -> dict[str, str]:
    """Python and the libraries whose releases change results."""
    return {"version.python": platform.python_version(), **{f"version.{name}": version(name) for name in LIBRARIES}}


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
