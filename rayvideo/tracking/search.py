"""Runs that are there already: found by what MLflow knows of them, and given files afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow.exceptions import MlflowException

from rayvideo.paths import without_login, without_login_of
from rayvideo.tracking.access import AccessError, connect
from rayvideo.tracking.address import VARIABLE, sqlite_file
from rayvideo.tracking.run import RunRef, Tracker, TrackingError, run_at


def run_folders(uri: str, query: str) -> list[str]:
    """The folders of the runs that MLflow's query finds in all experiments, the oldest run first.

    Raises:
        TrackingError: nobody answers there, there is no such database, or MLflow can't read the query.
    """
    _refuse_missing(uri)
    what = f"{without_login(uri)}: MLflow query {query!r}"
    try:
        client = connect(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, query, order_by=["attributes.start_time ASC"])
    except (AccessError, MlflowException) as error:
        raise TrackingError(f"{what} finds nothing: {without_login_of(uri, str(error))}") from error
    return list(dict.fromkeys(run.data.tags["run_folder"] for run in runs if "run_folder" in run.data.tags))


def attach(ref: RunRef, file: Path, folder: str) -> None:
    """Store a file among a finished run's artifacts, below `folder`; the run is not opened again.

    Args:
        ref: As summary.json has it, without a login; MLFLOW_TRACKING_URI may be the same address with one.

    Raises:
        TrackingError: the run's server does not answer, its database is gone, or it has the run no more.
    """
    given = os.environ.get(VARIABLE, "")
    uri = given if without_login(given) == ref.uri else ref.uri
    _refuse_missing(uri)
    Tracker(run_at(uri, ref.run_id)).artifacts(file, folder)


def _refuse_missing(uri: str) -> None:
    """Refuse a database file that is not there: MLflow would make it."""
    file = sqlite_file(uri)
    if file and not file.exists():
        raise TrackingError(
            f"{without_login(uri)}: there is no such database; set MLFLOW_TRACKING_URI to the runs' own"
        )
