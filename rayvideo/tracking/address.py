"""Where MLflow keeps runs: the address of a server, or of a database such as the one beside the runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from rayvideo.errors import RecipeError
from rayvideo.paths import expand, without_login
from rayvideo.recipe import Recipe
from rayvideo.storage import is_uri

OPTION, VARIABLE = "tracking.uri", "MLFLOW_TRACKING_URI"
ALLOWED = "a server such as http://host:5000, or a database such as sqlite:////data/mlflow.db"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases that MLflow uses besides sqlite -> where they listen, unless the address says otherwise."""
BY_NAME = ("databricks", "databricks-uc", "uc")
"""Addresses that MLflow knows without `://`."""


def tracking_uri(recipe: Recipe) -> str:
    """The recipe's server, else MLFLOW_TRACKING_URI, else sqlite in the recipe's storage; its path is absolute.

    Raises:
        RecipeError: it is no address of a server or a database; or storage is a cloud URI, where sqlite can't live,
            and no server is named.
    """
    return _checked(OPTION, recipe.tracking.uri) if recipe.tracking.uri else uri_beside(recipe.storage)


def uri_beside(storage: str) -> str:
    """MLFLOW_TRACKING_URI, else sqlite in the storage: where runs are that name no server.

    Raises:
        RecipeError: as `tracking_uri` says.
    """
    if uri := os.environ.get(VARIABLE):
        return _checked(VARIABLE, uri)
    if is_uri(storage):
        raise RecipeError(
            f"{OPTION}: sqlite can't live in storage {storage!r}; name an MLflow server in {OPTION} or {VARIABLE}"
        )
    return database_in(storage)


def database_in(storage: str) -> str:
    """The address of the database in a local folder.

    Raises:
        RecipeError: this release of SQLAlchemy can't write it down.
    """
    try:
        return _sqlite(URL.create("sqlite", database=str(Path(storage).absolute() / "mlflow.db")))
    except ValueError as error:
        raise RecipeError(f"storage {storage!r}: {error}") from error


def sqlite_file(uri: str) -> Path | None:
    """The file of an sqlite database; None for every other address."""
    return Path(str(make_url(uri).database)).absolute() if uri.startswith("sqlite") else None


def is_server(uri: str) -> bool:
    """Whether it is the address of an MLflow server, not of a database."""
    return urlsplit(uri).scheme in ("http", "https")


def _checked(key: str, uri: str) -> str:
    """The address under `key`, if it has the form of one; the path of a database file is made absolute."""
    shown = f"{key} {without_login(uri)!r}"
    scheme, mark, _ = uri.partition("://")
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise RecipeError(f"{shown} is no address of MLflow without http:// or https:// ahead of it")
    if scheme == "file" or (not mark and uri not in BY_NAME):
        raise RecipeError(
            f"{shown} is a folder of files, in which MLflow keeps no runs any more; name {ALLOWED} (`mlflow "
            "migrate-filestore` moves old runs there)"
        )
    kind = scheme.partition("+")[0]
    if kind == "postgres":
        raise RecipeError(f"{shown}: the name of that kind of database is postgresql://…")
    if kind == "sqlite":
        try:
            url = make_url(uri)
            if url.host or url.database in (None, "", ":memory:") or str(url.database).startswith("file:"):
                raise ValueError(f"it needs the path of a file, absolute ones after four slashes; name {ALLOWED}")
            return _sqlite(url.set(database=expand(str(url.database))))
        except (ArgumentError, ValueError) as error:
            raise RecipeError(f"{shown}: {error}") from error
    if (is_server(uri) or kind in PORTS) and not _is_whole(uri):
        raise RecipeError(f"{shown} names no host, or a port that is no number; name {ALLOWED}")
    return uri


def _is_whole(uri: str) -> bool:
    """Whether the address of a server names its host, and a port that is a number; databases may do without both."""
    try:
        if is_server(uri):
            return urlsplit(uri).port != 0 and bool(urlsplit(uri).hostname)
        return bool(make_url(uri))
    except (ArgumentError, ValueError):
        return False


def _sqlite(url: URL) -> str:
    """The address of a database file, with an absolute path, as SQLAlchemy reads it.

    Of an address that begins with `sqlite:///`, MLflow makes the folder, but does not read escapes such as %20 in it.
    Paths that need escapes are written with the driver's name, `sqlite+pysqlite:///`: then MLflow makes no folder, and
    we do.

    Raises:
        ValueError: this release of SQLAlchemy can't read it so.
    """
    path = str(Path(str(url.database)).absolute())
    if not {"%", "?"} & set(path):
        _, mark, query = url.render_as_string().partition("?")
        return f"sqlite:///{path}{mark}{query}"
    written = url.set(drivername="sqlite+pysqlite", database=path).render_as_string()
    if make_url(written).database != path:
        raise ValueError(
            f"this release of SQLAlchemy finds no database in a folder with '?' in its name, {path!r}; rename it, or "
            f"name an MLflow server in {OPTION} or {VARIABLE}"
        )
    return written
