"""The user's own modules, which a recipe's classes live in: found beside the recipe, and by every process of the run.

They are found by name, one by one, and only after all that is installed. Their folder on Python's path would offer
everything in it to whoever asks: a `wandb.py`, or a folder `datasets` full of clips, to libraries that look whether
they may import that.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from rayvideo.errors import RecipeError
from rayvideo.importing import quickly

if TYPE_CHECKING:
    from rayvideo.recipe import Recipe

T = TypeVar("T")

PLACES = "RAYVIDEO_OWN_MODULES"
"""Environment variable with {name: file or folder} as JSON; the workers of a Ray on this machine inherit it."""


def make_importable(recipe: Recipe, file: str | Path) -> None:
    """Let this process, and a Ray that it starts, import the classes that the recipe names.

    Their modules may lie beside the recipe `file` or in the current directory, and import others from there.
    """
    features = recipe.evaluation.features
    types = [judge.type for judge in (*recipe.reward.judges, *recipe.evaluation.judges)]
    types += [features.type] if features else []
    types.append(recipe.training.objective)
    types += [recipe.model.family] if recipe.model.family else []
    types += [recipe.training.stop_rule] if recipe.training.stop_rule else []
    named = [kind.partition(":")[0].partition(".")[0] for kind in types if ":" in kind]
    folders = [Path(file).expanduser().parent.resolve(), Path.cwd().resolve()]
    os.environ.pop(PLACES, None)  # of another recipe
    found: dict[str, Path] = {}
    wanted = named.copy()
    while wanted:
        name = wanted.pop()
        if name in found or name == __package__:
            continue
        if place := _place(name, folders, may_be_plain_folder=name in named):
            found[name] = place
            wanted += _imported_by(place)
    os.environ[PLACES] = json.dumps({name: str(place) for name, place in found.items()})


def places() -> dict[str, Path]:
    """Own modules by name: files, and the folders of packages."""
    return {name: Path(place) for name, place in json.loads(os.environ.get(PLACES, "{}")).items()}


def resolve_name(name: str) -> Any:
    """What "module:Class" names; the module may be one of the user's own.

    Raises:
        ImportError: whatever the module raises while it is imported; its message is one line.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    try:
        with quickly():
            return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        ours = error.name == name.partition(":")[0].partition(".")[0]
        hint = "; a module of yours must lie beside the recipe or in the current directory" if ours else ""
        raise ImportError(f"{error}{hint}") from error
    except Exception as error:
        raise ImportError(_told(error)) from error


def resolve_class(name: str, base: type[T], public: str) -> type[T]:
    """The class that "module:Class" names, if it derives from `base`, which users know as `public`, and is finished.

    Raises:
        ImportError: its message continues a sentence that begins with the option and the name.
    """
    try:
        found = resolve_name(name)
    except ImportError as error:
        raise ImportError(f"can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ImportError(f"is not a subclass of {public}")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise ImportError(f"lacks {', '.join(f'{part}()' for part in lacking)}")
    return found


def no_such_option(key: str, name: str, allowed: Sequence[str]) -> str:
    """That what the recipe calls `name` has no option `key`, whose last word is its name; the nearest one, and all."""
    close = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{key} is not an option of {name!r}{hint} Allowed: {', '.join(allowed) or 'none'}"


def refuse_options(key: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a function, or a class's constructor, does not take, or takes and the recipe does not give.

    Args:
        key: Where the options stand in the recipe.
        name: How the recipe names the function.

    Raises:
        RecipeError: naming the option, the nearest one that there is, and all that are allowed.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    allowed = sorted(
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for option in options:
        if not takes_any and option not in allowed:
            raise RecipeError(no_such_option(f"{key}.{option}", name, allowed))
    try:
        signature.bind(**options)
    except TypeError as error:
        raise RecipeError(f"{key} don't fit {name!r}: {error}") from error


def _told(error: Exception) -> str:
    """An error of the user's own module, with the line in it."""
    kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    theirs = any(place in (file, *file.parents) for place in places().values())
    return f"{kind}{error}" + (f" ({last.filename}, line {last.lineno})" if theirs else "")


class _Finder(MetaPathFinder):
    """Finds own modules, where nothing else does."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = places().get(name)
        return PathFinder.find_spec(name, [str(place.parent)]) if place else None


def _place(name: str, folders: Sequence[Path], may_be_plain_folder: bool) -> Path | None:
    """The file, or the folder of the package, that `name` means and that lies in one of the folders."""
    try:
        spec = importlib.util.find_spec(name) or PathFinder.find_spec(name, [str(folder) for folder in folders])
    except ValueError:  # something that a program made up while it ran
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        place = Path(spec.origin or "")
    elif spec.origin or may_be_plain_folder:  # what happens to be called as a library is no package of the user's
        place = Path(next(iter(spec.submodule_search_locations)))
    else:
        return None
    place = place.parent.resolve() / place.name
    return place if place.parent in folders and (place.is_dir() or place.suffix == ".py") else None


def _imported_by(place: Path) -> set[str]:
    """Top-level names that a module, or any module of a package, imports somewhere."""
    names: set[str] = set()
    for file in [place] if place.is_file() else place.rglob("*.py"):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # to import it says more
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names
