"""Where figures were measured: the line that stands above them."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "ray")


def machine() -> dict[str, str]:
    """Date, CPU, cores, load at the moment, Python and libraries."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_of(Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else platform.processor(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def cpu_of(cpuinfo: str) -> str:
    """The name of the first processor in the text of /proc/cpuinfo; "unknown" where it has none."""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def in_words(found: dict[str, str]) -> str:
    """What `machine` says, as a sentence."""
    libraries = ", ".join(f"{name} {found[name]}" for name in LIBRARIES)
    return (
        f"{found['date']}, {found['cores']} cores of {found['cpu']}, load {found['load']} at the start, Python "
        f"{found['python']}, {libraries}."
    )
