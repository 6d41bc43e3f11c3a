"""MLflow: one run for a recipe, with its options, inputs, versions, metrics, frame strips, clips, reports and product.

The driver makes the run and hands its `RunRef` to whoever logs: rank 0 while training, the driver afterwards. Without
a server everything is kept under the recipe's storage: `mlflow.db` (sqlite) and `mlartifacts/` beside it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from rayvideo.data.video import write_clip
from rayvideo.errors import Stopped, UserError
from rayvideo.paths import without_login, without_login_of
from rayvideo.recipe import Recipe, flatten, shareable
from rayvideo.storage import is_uri, join
from rayvideo.tracking.access import AccessError, connect, quiet
from rayvideo.tracking.address import is_server, sqlite_file, tracking_uri
from rayvideo.tracking.inputs import Input
from rayvideo.tracking.machine import Watched, watch
from rayvideo.tracking.origin import commit, overrides, source, versions
from rayvideo.tracking.product import Product, log_product, register
from rayvideo.tracking.strip import Frames, draw_strip

LONGEST_PARAM = 500  # characters that every server takes; newer ones take more
CUT = "… (see recipe.yaml)"  # the end of a param that was too long
LONGEST_NAME = 250  # characters of a param's name
LONGEST_KEY = 120  # characters of an image's key, which becomes part of a file name
ARTIFACTS = "mlartifacts"  # folder of artifacts beside a database

Item = TypeVar("Item")


class TrackingError(UserError, RuntimeError):
    """MLflow does not have what was asked for."""


@dataclasses.dataclass(frozen=True)
class RunRef:
    """Where an MLflow run is; plain strings, so that it travels to workers."""

    uri: str
    experiment_id: str
    run_id: str

    def shareable(self) -> dict[str, str]:
        """For summary.json: without the login that the URI may hold."""
        return {**dataclasses.asdict(self), "uri": without_login(self.uri)}


def open_experiment(recipe: Recipe) -> tuple[str, str]:
    """The tracking URI, and the id of the recipe's experiment there, which is made if it is new.

    Raises:
        RecipeError: as `tracking_uri` says.
        TrackingError: nobody answers there; the experiment is deleted, or its artifacts are behind another address, or
            it has no run `tracking.parent`.
    """
    uri, name = tracking_uri(recipe), recipe.tracking.experiment
    what = f"{without_login(uri)}: experiment {name!r}"
    client = _connect(uri, f"{what} can't be opened")
    try:
        client.create_experiment(name, _artifacts_beside(uri, recipe.storage))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise TrackingError(f"{what} can't be opened: {without_login_of(uri, str(error))}") from error
    experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{what} is deleted; restore it with `MLFLOW_TRACKING_URI={shlex.quote(without_login(uri))} mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}`, or name another tracking.experiment"
        )
    _refuse_served(experiment.artifact_location, uri, what)
    if recipe.tracking.parent is not None:
        _refuse_parent(client, recipe.tracking.parent, experiment.experiment_id, what)
    return uri, experiment.experiment_id


def create_run(recipe: Recipe, run_folder: str | Path, typed: Sequence[str] = ()) -> RunRef:
    """Make a run, with the whole recipe as params and recipe.yaml, and the program and library versions as tags.

    Args:
        typed: The overrides that were given on the command line.

    Raises:
        UserError: as `open_experiment` says.
    """
    uri, experiment_id = open_experiment(recipe)
    client = _client(uri)
    name = recipe.tracking.run_name or Path(run_folder).name
    tags = {
        "run_folder": str(run_folder),
        **source(),
        **overrides(typed),
        **versions(),
        **{f"mlflow.source.git.{key}": value for key, value in commit().items()},
    }
    if recipe.tracking.parent is not None:
        tags[MLFLOW_PARENT_RUN_ID] = recipe.tracking.parent
    run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    tree = shareable(recipe)
    # As a dict: two keys of a judge's options may become one name, of which MLflow takes one value.
    named = {param_name(key): value for key, value in flatten(tree).items()}
    params = (Param(key, _shorten(value)) for key, value in named.items())
    for batch in _batches(params, 100):  # the most that MLflow takes at once
        client.log_batch(run_id, params=batch)
    client.log_text(run_id, yaml.safe_dump(tree, sort_keys=False), "recipe.yaml")
    return RunRef(uri, experiment_id, run_id)


def find_run(recipe: Recipe, run_id: str) -> RunRef:
    """A run that exists.

    Raises:
        TrackingError: the recipe's server or database does not have it, or not its artifacts.
    """
    return run_at(tracking_uri(recipe), run_id)


def run_at(uri: str, run_id: str) -> RunRef:
    """A run that exists at an address.

    Raises:
        TrackingError: nobody answers there, or the run or its artifacts are elsewhere.
    """
    what = f"{without_login(uri)}: run {run_id}"
    client = _connect(uri, f"{what} can't be read")
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"{what} can't be read: {without_login_of(uri, str(error))}") from error
    _refuse_served(run.info.artifact_uri, uri, what)
    return RunRef(uri, run.info.experiment_id, run_id)


class Tracker:
    """Writes into one run, from one process at a time.

    Metrics are sent in the background; `flush` and `finish` wait for them and raise what went wrong. A `with` block
    closes the run at its end: finished, failed after an error, or killed by a signal.

    Args:
        skip_logged: Leave out what the run has already: steps that a resumed training does again would stand there
            twice. A metric's values up to its newest step count as logged, and so do those that are logged with it.
    """

    def __init__(self, ref: RunRef, *, skip_logged: bool = False) -> None:
        self.ref = ref
        self._client = _client(ref.uri)
        # One thread, so that steps arrive in order: should this process be killed, what arrived has no gaps.
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._sending: list[Future[Any]] = []
        self._earlier = set(self._client.get_run(ref.run_id).data.metrics) if skip_logged else set()
        self._monitor: Watched | None = None
        self._newest: dict[str, int] = {}  # of metrics in `_earlier`: the newest step, once it was asked for

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, (KeyboardInterrupt, Stopped)) else "FAILED")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One value a metric at an optimizer step; up to 1000 of them arrive together or not at all."""
        now = int(time.time() * 1000)
        entries = [Metric(metric_name(name), float(value), now, step) for name, value in metrics.items()]
        # To ask for one metric's history takes a second after 20 000 steps. What arrived together is asked for once.
        earlier = [entry.key for entry in entries if entry.key in self._earlier]
        if earlier and self.logged(earlier[0], step):
            entries = [entry for entry in entries if entry.key not in self._earlier]
        for batch in _batches(entries, 1000):
            self._sending.append(self._sender.submit(self._client.log_batch, self.ref.run_id, metrics=batch))
        if len(self._sending) >= 100:
            self.flush()

    def logged(self, name: str, step: int) -> bool:
        """Whether the run had a metric's value of this step already; False unless `skip_logged`."""
        key = metric_name(name)
        if key not in self._earlier:
            return False
        if key not in self._newest:
            self._newest[key] = max(point.step for point in self._client.get_metric_history(self.ref.run_id, key))
        return step <= self._newest[key]

    def curve(self, names: Sequence[str]) -> dict[int, float]:
        """Step -> the mean of these metrics, at each step that the run has all of them of, in the steps' order."""
        points = [self._client.get_metric_history(self.ref.run_id, metric_name(name)) for name in names]
        curves = [{point.step: point.value for point in one} for one in points]
        shared = set.intersection(*map(set, curves))
        return {step: fmean(curve[step] for curve in curves) for step in sorted(shared)}

    def tag(self, **tags: str | int) -> None:
        """Set tags."""
        self._client.log_batch(self.ref.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def strip(self, name: str, step: int, base: Frames, tuned: Frames, caption: str) -> None:
        """A picture at a step: frames [F, H, W, 3] of the base above those of the tuned model."""
        picture = draw_strip([("base", base), ("tuned", tuned)], caption)
        key = metric_name(name)[:LONGEST_KEY]
        self._client.log_image(self.ref.run_id, picture, key=key, step=step)

    def video(self, path: str, frames: Frames) -> None:
        """Store frames [F, H, W, 3] as an mp4 at `path` among the artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            write_clip(file, frames)
            self._client.log_artifact(self.ref.run_id, str(file), str(Path(path).parent))

    def artifacts(self, source: str | Path, path: str | None = None) -> None:
        """Store a file, or a folder's content, under `path` among the artifacts."""
        if Path(source).is_dir():
            self._client.log_artifacts(self.ref.run_id, str(source), path)
        else:
            self._client.log_artifact(self.ref.run_id, str(source), path)

    def inputs(self, *inputs: Input) -> None:
        """Note what the run was made from; what it has already is left out."""
        self._client.log_inputs(self.ref.run_id, datasets=[one.entity() for one in inputs])

    def product(self, product: Product, step: int, name: str | None) -> None:
        """Log the model that the run put out at a step, and enter it into the registry if a `name` is given."""
        model = log_product(self._client, self.ref.experiment_id, self.ref.run_id, product, step)
        self.tag(model=f"models:/{model.model_id}")
        if name is not None:
            version = register(self._client, name, model)
            self.tag(registered=f"models:/{name}/{version}")

    def watch_machine(self) -> None:
        """Log what this machine is busy with, until `unwatch_machine`."""
        self._monitor = watch(self.ref.run_id, self.ref.uri)

    def unwatch_machine(self) -> None:
        """Log what was seen last, if the machine is watched."""
        if self._monitor is not None:
            self._monitor.finish()

    def flush(self) -> None:
        """Wait until every metric has arrived."""
        while self._sending:
            self._sending.pop(0).result()

    def reopen(self) -> None:
        """Mark a run as running again: a training that is resumed."""
        self._client.update_run(self.ref.run_id, status="RUNNING")

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Wait for the metrics and close the run, with `status` even if some did not arrive."""
        try:
            self.flush()
        finally:
            self._client.set_terminated(self.ref.run_id, status)


def param_name(key: str) -> str:
    """The name under which MLflow keeps an option of a recipe, by the option's dotted key."""
    return metric_name(key.replace('"', ""))[:LONGEST_NAME].rstrip("/.")


def metric_name(name: str) -> str:
    """A name of characters that MLflow accepts, letters, digits and `_-./ `, and no path that leads elsewhere."""
    parts = re.sub(r"[^\w\-./ ]", "_", name, flags=re.A).split("/")
    return "/".join("_" * len(part) if part in (".", "..") else part for part in parts if part) or "_"


def _client(uri: str) -> MlflowClient:
    """A client of an address that `_connect` has reached before."""
    quiet()
    return MlflowClient(tracking_uri=uri)


def _connect(uri: str, what: str) -> MlflowClient:
    try:
        return connect(uri)
    except AccessError as error:
        raise TrackingError(f"{what}: {error}") from error


def _artifacts_beside(uri: str, storage: str) -> str | None:
    """Where artifacts of a new experiment go; None leaves that to a server.

    With a database alone MLflow would put them into the current directory.
    """
    if is_server(uri) or "://" not in uri:
        return None
    if database := sqlite_file(uri):
        return (database.parent / ARTIFACTS).as_uri()
    return join(storage, ARTIFACTS) if is_uri(storage) else (Path(storage).absolute() / ARTIFACTS).as_uri()


def _refuse_parent(client: MlflowClient, parent: str, experiment_id: str, what: str) -> None:
    try:
        theirs = client.get_run(parent).info.experiment_id
    except MlflowException:
        theirs = None
    if theirs != experiment_id:  # MLflow shows no children of another experiment
        raise TrackingError(f"{what} has no run {parent!r}; name one of it in tracking.parent, or leave that out")


def _refuse_served(artifacts: str, uri: str, what: str) -> None:
    """Refuse a database whose artifacts only the server that made it can read and write."""
    if urlsplit(artifacts).scheme == "mlflow-artifacts" and not is_server(uri):
        raise TrackingError(
            f"{what} was made by an MLflow server, which alone reaches its artifacts ({artifacts}); name the server in "
            "tracking.uri or MLFLOW_TRACKING_URI, or name another tracking.experiment"
        )


def _shorten(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - len(CUT)] + CUT


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
