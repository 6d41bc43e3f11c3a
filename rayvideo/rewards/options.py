"""What a recipe's judge tells the class or function that it names, and whether that takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rayvideo import sections
from rayvideo.own_modules import no_such_option
from rayvideo.precision import DTYPES
from rayvideo.rewards.base import RewardError

BESIDE_OPTIONS = ("checkpoint", "architecture", "resize", "dtype")
"""What a judge is told by keys of its own."""


def options_of(judge: sections.Judge) -> dict[str, Any]:
    """The keyword arguments that a recipe gives to `Reward.check` and `Reward.load`."""
    options: dict[str, Any] = {"resize": judge.resize, "dtype": DTYPES[judge.dtype], **judge.options}
    return options if judge.architecture is None else options | {"architecture": judge.architecture}


def check_options(judge: sections.Judge, function: Callable[..., Any]) -> None:
    """Refuse options that the class's load() or check() doesn't take, or takes and the recipe doesn't give.

    Raises:
        RewardError: beginning with the option's name.
    """
    if twice := [name for name in BESIDE_OPTIONS if name in judge.options]:
        raise RewardError(f"options.{twice[0]} is not allowed: {twice[0]} stands beside options, not in it")
    signature = inspect.signature(function)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    named = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    who = f"{judge.type!r}, whose {function.__name__}()"
    for name in () if inspect.Parameter.VAR_KEYWORD in kinds else options_of(judge):
        if name in named:
            continue
        if name == "architecture":
            raise RewardError(f"architecture {judge.architecture!r} is not taken by {who} has no such argument")
        if name in BESIDE_OPTIONS:
            raise RewardError(f"type: {who} must take resize= and dtype=, or **options")
        allowed = sorted(named.difference(BESIDE_OPTIONS, list(signature.parameters)[:1]))
        raise RewardError(no_such_option(f"options.{name}", judge.type, allowed))
    try:
        signature.bind(judge.checkpoint, **options_of(judge))
    except TypeError as error:
        raise RewardError(f"options don't fit {who} says: {error}") from error
