"""Whether MLflow can be reached and used. It is found out within seconds; MLflow's client would try for minutes."""

from __future__ import annotations

import logging
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from rayvideo.locking import locked
from rayvideo.paths import without_login, without_login_of
from rayvideo.tracking.address import ALLOWED, OPTION, PORTS, VARIABLE, is_server, sqlite_file

PATIENCE_S = 10
"""Seconds within which a server or a database must answer."""
SIGNATURE = b"SQLite format 3\0"  # what a database file of sqlite begins with
PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Module of a database's driver -> the package that brings it, where that is called otherwise."""
LONGEST_SHOWN = 200
"""Characters of an answer in a message."""


class AccessError(Exception):
    """Why MLflow can't be used, and what to do; the message holds no logins."""


def connect(uri: str) -> MlflowClient:
    """A client of the server or the database at `uri`, which was found to answer and to fit this release of MLflow.

    A database file is made if there is none, by one process at a time: two at once would break it.

    Raises:
        AccessError: it is neither, can't be reached, or was made by another release.
    """
    try:
        if is_server(uri):
            _ask(uri)
        elif (database := sqlite_file(uri)) is not None:
            _refuse_percent(mlflow.__file__)
            quiet()
            with _made_once(database):
                _check_database(uri)
                return MlflowClient(tracking_uri=uri)
        elif re.split(r"\+|://", uri)[0] in PORTS:
            _refuse_percent(mlflow.__file__)
            quiet()
            _call(make_url(uri))
            _check_database(uri)
        return MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise AccessError(f"{_reason(error, uri)}; name {ALLOWED}") from error


def _refuse_percent(package: str) -> None:
    """Refuse an installation of MLflow in a folder with % in its name: its migrations are looked for in another one.

    MLflow gives their folder to configparser, which takes % for the beginning of a variable.
    """
    if "%" in package:
        raise AccessError(
            f"MLflow opens no database where it is installed below a folder with % in its name ({package}); move the "
            f"environment, or name a server in {OPTION} or {VARIABLE}"
        )


def quiet() -> None:
    """Keep MLflow from logging the list of its migrations for each database that it opens."""
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _ask(uri: str) -> None:
    """Send a server one short request, with the login and the certificates that MLflow's client would use."""
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=PATIENCE_S,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise AccessError(
            f"nobody answers there ({_reason(error, uri)}); start the server, or mend the address"
        ) from None
    if answer.ok and answer.text.lstrip().startswith("{"):
        return
    said = f"{answer.status_code} {answer.reason}"
    if not answer.text.lstrip().startswith("<"):  # a page for browsers would say nothing in a line
        said += f": {' '.join(answer.text.split())[:LONGEST_SHOWN]}"
    if answer.status_code in (401, 403):
        raise AccessError(
            f"it refuses this login ({said}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    raise AccessError(
        f"what answers there is no MLflow server, or not ready ({said}); mend the address, or wait for it"
    )


def _call(url: URL) -> None:
    """Refuse a database without its driver, or whose machine does not answer."""
    kind = url.get_backend_name()
    try:
        create_engine(url).dispose()
    except ImportError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise AccessError(f"its driver is not installed ({error}); pip install {package}") from error
    if url.host:
        try:
            socket.create_connection((url.host, url.port or PORTS[kind]), timeout=PATIENCE_S).close()
        except OSError as error:
            raise AccessError(f"nobody answers there ({error}); start the database, or mend the address") from error


@contextmanager
def _made_once(database: Path) -> Iterator[None]:
    """Hold the lock of a database file while the block runs; refuse a file that is something else, or can't be made."""
    lock = database.with_name(f".{database.name}.lock")
    try:
        with locked(lock, wait=True, otherwise="start runs on a new database one after the other"):
            if database.exists():
                with open(database, "r+b") as file:
                    start = file.read(len(SIGNATURE))
                if start not in (b"", SIGNATURE):
                    raise AccessError("the file is no sqlite database; move it away, or name another")
            yield
    except OSError as error:
        raise AccessError(f"it can't be made or written ({error}); name a place where you may write") from error


def _check_database(uri: str) -> None:
    """Refuse a database of another release of MLflow. This one would migrate some of the older ones unasked."""
    engine = create_engine(uri)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    newest = migrations.get_current_head()
    if found in (None, newest):
        return
    version = mlflow.__version__
    if found in {step.revision for step in migrations.walk_revisions()}:
        upgrade = shlex.join(["mlflow", "db", "upgrade", without_login(uri)])
        raise AccessError(
            f"an older MLflow made the database: MLflow {version} needs schema {newest}, not {found}; keep a copy of "
            f"it and run `{upgrade}`, or name another"
        )
    raise AccessError(
        f"a newer MLflow than this one, {version}, made the database: its schema {found} is unknown here; upgrade "
        "mlflow, or name another"
    )


def _reason(error: Exception, uri: str) -> str:
    """What an error says, in one line and without the login."""
    text = " ".join(str(getattr(error, "orig", error)).split())  # SQLAlchemy has the database's own error in `orig`
    if system := re.search(r"\[Errno -?\d+\] [^'\")>]+", text):
        return system[0]
    if "timed out" in text:
        return f"no answer within {PATIENCE_S} s"
    return without_login_of(uri, text)[:LONGEST_SHOWN]
