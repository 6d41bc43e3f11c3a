"""A judge that is a plain function of the user's, `score(frames, prompts)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Self

from rayvideo.own_modules import no_such_option
from rayvideo.rewards.base import Reward, RewardError, declared_by
from rayvideo.rewards.options import BESIDE_OPTIONS


class FunctionJudge(Reward):
    """A function of frames [N, 3, H, W] in [0, 1] and N prompts that returns scores [N].

    The recipe's `options` are its keyword arguments. `checkpoint`, `architecture`, `resize` and `dtype` it gets if it
    names them.
    """

    function: Callable[..., Tensor]

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self._arguments = arguments

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        """Keep the function's keyword arguments."""
        return cls(cls._taken(checkpoint, options))

    @classmethod
    def check(cls, checkpoint: str | None, **options: Any) -> None:
        """Refuse what the function does not take, or takes and is not given."""
        cls._taken(checkpoint, options)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function says of frames [N, 3, H, W]."""
        return type(self).function(frames, prompts, **self._arguments)

    @classmethod
    def _taken(cls, checkpoint: str | None, options: dict[str, Any]) -> dict[str, Any]:
        """The function's keyword arguments.

        Raises:
            RewardError: beginning with the option's name.
        """
        function = cls.function
        who = f"{function.__module__}:{function.__qualname__}"
        signature = inspect.signature(function)
        keywords = dict(list(signature.parameters.items())[2:])
        given = {"checkpoint": checkpoint, **options}
        for name in ("checkpoint", "architecture"):  # which a recipe sets for this judge alone
            if given.get(name) is not None and name not in keywords:
                raise RewardError(
                    f"{name} {given[name]!r} is not taken by {who!r}, a function without such an argument"
                )
        arguments = {name: value for name, value in given.items() if name in keywords or name not in BESIDE_OPTIONS}
        kinds = [keyword.kind for keyword in keywords.values()]
        for name in arguments:
            if name not in keywords and inspect.Parameter.VAR_KEYWORD not in kinds:
                allowed = sorted(set(keywords).difference(BESIDE_OPTIONS))
                raise RewardError(no_such_option(f"options.{name}", who, allowed))
        try:
            signature.bind(None, None, **arguments)
        except TypeError as error:
            raise RewardError(f"options don't fit {who!r}, called as score(frames, prompts, …): {error}") from error
        return arguments


def judge_of(function: Callable[..., Tensor]) -> type[FunctionJudge]:
    """The class of a function; what it says of itself, such as `function.differentiable = False`, holds for it."""
    return type(function.__name__, (FunctionJudge,), {"function": staticmethod(function), **declared_by(function)})
