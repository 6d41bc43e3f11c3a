"""Paths as people type them: a leading `~` is a home folder, and nothing else is filled in."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from rayvideo.errors import UserError

VARIABLE = re.compile(r"(?:^|/)\$[A-Za-z_]")
"""A part of a path that begins like an environment variable."""
LOGIN = re.compile(r"://([^:/?#@]*(?::(?!\d+(?:[/?#]|$))[^@]*)?@(?:[^/?#@]*@)*)")
"""A name, or a name and a password, in an address; a password may hold what ends a host elsewhere: `/`, `?`, `#`."""
SECRET = re.compile(r"([?&][^=&#]*(?:pass|pwd|secret|token)[^=&#]*=)[^&#]*", re.IGNORECASE)


class PathError(UserError):
    """A path on the command line that can't mean what was meant."""


def expand(path: str) -> str:
    """The path with a leading `~` or `~name` replaced by that home folder; URIs and hub ids stay as they are.

    Everything that is typed goes through here once: recipes and overrides, and by `argument` the options of commands.

    Raises:
        PydanticCustomError: it is empty, nobody knows that home, or it holds an environment variable; this is a
            `ValueError` that says why.
    """
    if not path:
        raise PydanticCustomError("path", "it names no file or folder")
    if VARIABLE.search(path):
        raise PydanticCustomError(
            "path",
            "environment variables are not filled in; write the whole path, begin it with ~ for your home folder, or "
            "let the shell fill it in, which it does outside of single quotes",
        )
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise PydanticCustomError(
            "path",
            "this machine knows no home folder {user}; write the whole path, or ./{path} for what is called so",
            {"user": path.partition("/")[0], "path": path},
        )
    return expanded


def expand_texts(options: dict[str, Any]) -> dict[str, Any]:
    """A judge's own options; texts like `~/models/clip` are paths, whatever the judge calls them."""
    return {key: os.path.expanduser(v) if isinstance(v, str) and "/" in v else v for key, v in options.items()}


def argument(path: str) -> str:
    """`expand` for argparse's `type`.

    Raises:
        PathError: naming the path.
    """
    try:
        return expand(path)
    except ValueError as error:
        raise PathError(f"{path!r}: {error}") from None


def path_argument(path: str) -> Path:
    """`argument` of what can't be a URI, for tools where argparse itself says what is wrong."""
    try:
        return Path(expand(path))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def without_login(uri: str) -> str:
    """An address as others may see it: no name and password ahead of the host, no secrets among its parameters."""
    return without_login_of(uri, uri)


def without_login_of(uri: str, text: str) -> str:
    """A text that may quote an address, without the login of that."""
    login = LOGIN.search(uri)
    return SECRET.sub(r"\1***", text.replace(login[1], "") if login else text)
