"""Options by their dotted keys: what each may hold, and `key=value` as it is typed on the command line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rayvideo.errors import RecipeError
from rayvideo.sections import Section


def apply(config: DictConfig, root: type[Section], key: str, value: str) -> Any:
    """Set one option of a recipe's tree, and return what it is set to.

    Where the option is text, `value` is it, character by character; only `null`, or nothing, stands for None where
    the option may be that. A list or mapping, and every other kind of value, is read as YAML.

    Raises:
        RecipeError: the recipe has no such option.
        OmegaConfBaseException, YAMLError, ValueError, TypeError: what comes of values that are none.
    """
    path = key.split(".")
    _reject_unknown(root, path)
    kinds = set(_choices(kind_of(root, path)))
    parsed: Any = value
    if not _is_text(kinds, value):
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))
        parsed = read["v"]
    elif value in ("null", "") and type(None) in kinds:
        parsed = None
    OmegaConf.update(config, key, parsed, force_add=True)
    return parsed


def kind_of(root: type[Section], path: Sequence[str]) -> Any:
    """The type of the option that a path of keys leads to; Any where the recipe leaves it open."""
    kind: Any = root
    for part in path:
        kind = next(_inside(kind, part), Any)
    return kind


def suggest(root: type[Section], path: Sequence[str]) -> str:
    """What to write in place of the unknown last key of a path: a similar one, and all that are allowed."""
    allowed = _options(root, path[:-1])
    close = difflib.get_close_matches(path[-1], allowed, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + (f" Allowed: {', '.join(allowed)}" if allowed else "")


def _reject_unknown(root: type[Section], path: Sequence[str]) -> None:
    for depth, part in enumerate(path):
        allowed = _options(root, path[:depth])
        if not allowed:
            return
        if part not in allowed and not part.isdigit():
            raise RecipeError(f"no such option {part!r}{suggest(root, path[: depth + 1])}")


def _options(root: type[Section], path: Sequence[str]) -> list[str]:
    """The keys allowed in the section that `path` leads to, or in each of a list of them; empty where any key is."""
    for kind in _choices(kind_of(root, path)):
        kinds = _choices(typing.get_args(kind)[0]) if typing.get_origin(kind) is tuple else [kind]
        if sections := [each for each in kinds if isinstance(each, type) and issubclass(each, Section)]:
            return list(sections[0].model_fields)
    return []


def _inside(kind: Any, part: str) -> Iterator[Any]:
    """The types of what stands under `part` in a value of this type."""
    for choice in _choices(kind):
        parts = typing.get_args(choice)
        if isinstance(choice, type) and issubclass(choice, Section):
            if part in choice.model_fields:
                yield choice.model_fields[part].annotation
        elif typing.get_origin(choice) is tuple:
            yield parts[0]
        elif typing.get_origin(choice) is dict:
            yield parts[1]


def _choices(kind: Any) -> Iterator[Any]:
    """The members of a union; without what Annotated adds to them."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from _choices(parts[0])
    elif origin in (types.UnionType, typing.Union):
        for part in parts:
            yield from _choices(part)
    else:
        yield kind


def _is_text(kinds: set[Any], value: str) -> bool:
    """Whether `value` is meant as it stands; one that may also be a mapping is, unless it opens with a brace."""
    texts = {kind for kind in kinds if kind is str or _names_texts(kind)}
    others = kinds - texts - {type(None)}
    return bool(texts) and (not others or not value.startswith(("{", "[")))


def _names_texts(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal and all(isinstance(name, str) for name in typing.get_args(kind))
