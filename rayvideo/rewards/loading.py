"""How the judge that a recipe describes is found, checked and loaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from rayvideo import sections
from rayvideo.errors import RecipeError
from rayvideo.own_modules import resolve_name
from rayvideo.rewards.base import Reward, RewardError
from rayvideo.rewards.clip_judge import ClipJudge
from rayvideo.rewards.function_judge import judge_of
from rayvideo.rewards.options import check_options, options_of
from rayvideo.rewards.temporal import clip_frames

BUILT_IN = {
    "hpsv2": "rayvideo.rewards.hpsv2:HPSv2",
    "pickscore": "rayvideo.rewards.pickscore:PickScore",
    "clip": "rayvideo.rewards.clip:CLIPScore",
    "aesthetic": "rayvideo.rewards.aesthetic:Aesthetic",
}
"""Recipe's `type` -> our class for it, imported only where it is used."""


def resolve(kind: str) -> type[Reward]:
    """The class that a recipe's `type` names: one of `BUILT_IN`, "module:Class", or one made of "module:function".

    Raises:
        RewardError: if there is no such module or name, or it is no `Reward`, or an unfinished one.
    """
    if ":" not in kind and kind not in BUILT_IN:
        raise RewardError(
            f"reward type {kind!r} is neither one of {sorted(BUILT_IN)} nor of the form 'module:Class' or "
            "'module:function'"
        )
    try:
        found = resolve_name(BUILT_IN.get(kind, kind))
    except ImportError as error:
        raise RewardError(f"reward type {kind!r} can't be imported: {error}") from error
    if inspect.isfunction(found):
        return judge_of(found)
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise RewardError(f"reward type {kind!r} is not a subclass of rayvideo.rewards.Reward, nor a function")
    if lacking := sorted(found.__abstractmethods__):
        raise RewardError(f"reward type {kind!r} lacks {' and '.join(f'{name}()' for name in lacking)}")
    return found


def check_judge(key: str, judge: sections.Judge, data: sections.Data | None = None) -> type[Reward]:
    """The class of a recipe's judge, which stands under `key`; refused if its files or options can't be right.

    Args:
        data: What clips are: a judge whose class asks for longer ones is refused too.

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
    if data is not None and issubclass(kind, ClipJudge):
        try:
            clip_frames(data.frames, data.fps, kind.fps, kind.frames)
        except ValueError as error:
            raise RecipeError(f"{key}.type {judge.type!r} {error}; raise data.frames") from error
    return kind


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
    if isinstance(reward, ClipJudge):
        reward.resize = judge.resize
    return reward.to(device).eval().requires_grad_(False)
