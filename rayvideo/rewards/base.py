"""What a judge of frames offers, and how one is found and loaded."""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo import sections
from rayvideo.errors import RecipeError, UserError
from rayvideo.own_modules import resolve_name
from rayvideo.precision import DTYPES

BUILT_IN = {
    "hpsv2": "rayvideo.rewards.hpsv2:HPSv2",
    "pickscore": "rayvideo.rewards.pickscore:PickScore",
    "clip": "rayvideo.rewards.clip:CLIPScore",
    "aesthetic": "rayvideo.rewards.aesthetic:Aesthetic",
}
"""Recipe's `type` -> our class for it, imported only where it is used."""

BESIDE_OPTIONS = ("checkpoint", "architecture", "resize", "dtype")
"""What a judge is told by keys of its own."""


class RewardError(UserError, RuntimeError):
    """A judge can't be loaded or was called wrongly. A failed judge never becomes a score."""


class Reward(nn.Module, ABC):
    """A frozen judge of frames. A class of your own is named `module:Class` in the recipe's `type`."""

    differentiable: ClassVar[bool] = True
    """Whether `score` carries a gradient to the frames; training refuses judges that say False."""

    reads_captions: ClassVar[bool] = True
    """Whether a frame scores higher with its own caption than with another's; `rayvideo doctor` holds it to that."""

    prefers_clean: ClassVar[bool] = True
    """Whether a frame scores higher than its blurred, noisy or banded version; `rayvideo doctor` holds it to that."""

    name: str = "reward"
    """Name in logs and errors; `load_reward` sets it to the recipe's."""

    size: tuple[int, int] | None = None
    """Height and width that frames are resized to before they are judged; None: they are judged as they come."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str | None, *args: Any, **options: Any) -> Self:
        """Build the judge on the CPU.

        It gets `resize` ("bilinear" or "bicubic"), `dtype` (torch.dtype), `architecture` if the recipe sets it, and
        everything under the recipe's `options`. An option that the signature doesn't name is refused before anything
        starts; **options takes whatever comes, misspelt ones too.
        """

    @classmethod
    def check(cls, checkpoint: str | None, *args: Any, **options: Any) -> None:
        """Refuse, without loading anything, what `load` would: a missing file, say. Jobs ask before Ray starts.

        Raises:
            RewardError: beginning with the option's name, such as "checkpoint 'x.pt' is not a file".
        """

    @abstractmethod
    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] in fp32 of frames [N, 3, H, W] in [0, 1] against their N prompts; a higher score is better.

        A frame's score must not depend on the others: frames of several callers may come together.
        """


def resolve(kind: str) -> type[Reward]:
    """The class that a recipe's `type` names: one of `BUILT_IN`, or "module:Class".

    Raises:
        RewardError: if there is no such module or class, or the class is no `Reward`, or an unfinished one.
    """
    if ":" not in kind and kind not in BUILT_IN:
        raise RewardError(f"reward type {kind!r} is neither one of {sorted(BUILT_IN)} nor of the form 'module:Class'")
    try:
        found = resolve_name(BUILT_IN.get(kind, kind))
    except ImportError as error:
        raise RewardError(f"reward type {kind!r} can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise RewardError(f"reward type {kind!r} is not a subclass of rayvideo.rewards.Reward")
    if lacking := sorted(found.__abstractmethods__):
        raise RewardError(f"reward type {kind!r} lacks {' and '.join(f'{name}()' for name in lacking)}")
    return found


def options_of(judge: sections.Judge) -> dict[str, Any]:
    """The keyword arguments that a recipe gives to `Reward.check` and `Reward.load`."""
    options: dict[str, Any] = {"resize": judge.resize, "dtype": DTYPES[judge.dtype], **judge.options}
    return options if judge.architecture is None else options | {"architecture": judge.architecture}


def check_judge(key: str, judge: sections.Judge) -> type[Reward]:
    """The class of a recipe's judge, which stands under `key`; refused if its files or options can't be right.

    Raises:
        RecipeError: naming the option.
    """
    if judge.architecture and judge.architecture.endswith(".json") and not Path(judge.architecture).is_file():
        raise RecipeError(f"{key}.architecture {judge.architecture!r} is not a file")
    # Of packages that this process may lack: its replica looks.
    if judge.runtime_env is not None and judge.type not in BUILT_IN:
        return Reward
    if judge.dtype == "auto":  # settled where it runs; nothing is loaded here
        judge = judge.model_copy(update={"dtype": "fp32"})
    try:
        kind = resolve(judge.type)
    except RewardError as error:
        raise RecipeError(f"{key}.type: {error}") from error
    try:
        for function in (kind.load, kind.check):
            check_options(judge, function)
        kind.check(judge.checkpoint, **options_of(judge))
    except RewardError as error:
        raise RecipeError(f"{key}.{error}") from error
    except Exception as error:
        raise RecipeError(f"{key}.type: check() of {judge.type!r} failed: {error!r}") from error
    return kind


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
        close = difflib.get_close_matches(name, allowed, n=1)
        raise RewardError(
            f"options.{name} is not an option of {judge.type!r}"
            + (f"; did you mean {close[0]!r}?" if close else ".")
            + f" Allowed: {', '.join(allowed) or 'none'}"
        )
    try:
        signature.bind(judge.checkpoint, **options_of(judge))
    except TypeError as error:
        raise RewardError(f"options don't fit {who} says: {error}") from error


def load_reward(judge: sections.Judge, device: torch.device | str = "cpu") -> Reward:
    """Load the judge that a recipe describes, frozen and in eval mode, onto `device`."""
    try:
        kind = resolve(judge.type)
        check_options(judge, kind.load)
        reward: Any = kind.load(judge.checkpoint, **options_of(judge))
    except RewardError as error:
        raise RewardError(f"judge {judge.name!r}: {error}") from error
    if not isinstance(reward, Reward):
        raise RewardError(
            f"judge {judge.name!r}: load() of {judge.type!r} returned {type(reward).__name__}; allowed: a Reward, "
            "such as cls()"
        )
    reward.name = judge.name
    return reward.to(device).eval().requires_grad_(False)
