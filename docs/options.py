"""Write the tables of docs/recipes.md from the descriptions in rayvideo/sections/: `python docs/options.py`."""

from __future__ import annotations

import types
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

from rayvideo.recipe import Recipe
from rayvideo.sections import FilePath, Section

PAGE = Path(__file__).parent / "recipes.md"
START = "<!-- The tables from here on are written by docs/options.py. -->\n"
PATH = typing.get_args(FilePath)[1:]
"""What tells a path from other text, where pydantic keeps it apart from the type."""
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}


def _section(annotation: object) -> type[Section] | None:
    """The section class inside an annotation such as `Lora`, `Features | None` or `tuple[Judge, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section, typing.get_args(annotation))), None)


def _kind(annotation: object, constraints: typing.Sequence[object] = ()) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation == FilePath or (annotation is str and set(constraints) & set(PATH)):
        return "path"
    if origin is typing.Annotated:
        return _kind(parts[0], [bound for field in parts[1:] for bound in getattr(field, "metadata", [field])])
    if origin is typing.Literal:
        return " / ".join(f"`{value}`" for value in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(part, constraints) for part in parts if part is not type(None))
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {_kind(parts[0])}"
    name = _name(annotation)
    bounds = [text.format(getattr(c, key)) for c in constraints for key, text in BOUNDS.items() if hasattr(c, key)]
    return " ".join([f"`{name}`", ", ".join(bounds)]).strip()


def _name(annotation: object) -> str:
    """A type as Python writes it, without the bounds of its parts."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation == FilePath:
        return "path"
    if origin is typing.Annotated:
        return _name(parts[0])
    name = getattr(origin or annotation, "__name__", str(annotation).replace("typing.", ""))
    return f"{name}[{', '.join(map(_name, parts))}]" if parts else name


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, tuple):
        return f"`{list(field.default)}`".replace("'", "")
    return "none" if field.default is None else f"`{field.default}`"


def _tables(section: type[Section], path: str, done: dict[type[Section], str]) -> list[str]:
    """The table of one section, then those of the sections inside it; `done` says where a section stands already."""
    rows, below = [], []
    for name, field in section.model_fields.items():
        kind, inner = _kind(field.annotation, field.metadata), _section(field.annotation)
        if inner:
            place = f"{path}{name}.N." if typing.get_origin(field.annotation) is tuple else f"{path}{name}."
            kind = f"as `{done[inner]}`" if inner in done else "below"
            if inner not in done:
                done[inner] = place + "…"
                below += _tables(inner, place, done)
        if not inner or field.description:
            rows.append(f"| `{path}{name}` | {kind} | {_default(field)} | {field.description or ''} |")
    head = [f"### {path.rstrip('.') or 'The recipe itself'}", "", section.__doc__ or "", ""]
    return [*head, "| option | kind | default | what it is |", "|---|---|---|---|", *rows, "", *below]


def page() -> str:
    """docs/recipes.md as it should be: its hand-written beginning, then the tables."""
    beginning, start, _ = PAGE.read_text(encoding="utf-8").partition(START)
    if not start:
        raise ValueError(f"{PAGE} lacks the line {START!r}")
    return beginning + START + "\n" + "\n".join(_tables(Recipe, "", {})).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
