"""What one check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayvideo.errors import UserError


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's table."""

    name: str
    """What was looked at."""
    ok: bool | None
    """None: it can't be told here; `measured` says why."""
    measured: str
    """Figures, in words."""
    mend: str = ""
    """What to do about it, where `ok` is False."""
    about: str = ""
    """The judge's name, "judges" for all of them, or "training"."""


def attempt(name: str, check: Callable[..., Finding], *arguments: Any) -> Finding:
    """What `check` finds; an exception out of foreign code, a judge's say, is a finding too."""
    try:
        return check(*arguments)
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Finding:
    """The finding that a check could not be made because of `error`."""
    if isinstance(error, UserError):
        return Finding(name, False, str(error), "see the message")
    words = (str(error).strip().splitlines() or [""])[0]
    return Finding(name, False, f"{type(error).__name__}: {words}", "this came out of the judge's or the model's code")
