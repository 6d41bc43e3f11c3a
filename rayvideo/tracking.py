"""MLflow: one run for a recipe, with its options, versions, metrics, frame strips, clips and reports.

The driver makes the run and hands its `RunRef` to whoever logs: rank 0 while training, the driver afterwards. Without
a server everything is kept under the recipe's storage: `mlflow.db` (sqlite) and `mlartifacts/` beside it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image, ImageDraw, ImageFont

from rayvideo.data.video import write_clip
from rayvideo.errors import RecipeError, Stopped, UserError
from rayvideo.recipe import Recipe

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "deepspeed", "mlflow")
LONGEST_PARAM = 500  # characters; servers differ in what they take
CUT = "… (see recipe.yaml)"
HOST, PORT = "127.0.0.1", "5000"  # of the UI that `ui_command` starts
LONGEST_NAME = 250  # characters of a param's name
LONGEST_KEY = 120  # characters of an image's key, which becomes part of a file name
STRIP_FRAMES = 8
STRIP_HEIGHT = 128  # pixels of a frame in a strip

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
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
        return {**dataclasses.asdict(self), "uri": _without_login(self.uri)}


def tracking_uri(recipe: Recipe) -> str:
    """The recipe's server, else MLFLOW_TRACKING_URI, else sqlite in the recipe's storage; its path is absolute.

    Raises:
        RecipeError: storage is a cloud URI, where sqlite can't live, and no server is named.
    """
    if uri := recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        database = _sqlite_file(uri)
        return f"sqlite:///{database}" if database else uri
    if "://" in recipe.storage:
        raise RecipeError(
            f"tracking.uri: sqlite can't live in storage {recipe.storage!r}; name an MLflow server in tracking.uri or "
            "MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{Path(recipe.storage).absolute() / 'mlflow.db'}"


def open_experiment(recipe: Recipe) -> tuple[str, str]:
    """The tracking URI, and the id of the recipe's experiment there, which is made if it is new.

    Raises:
        RecipeError: as `tracking_uri` says.
        TrackingError: nobody answers there; the experiment is deleted, or its artifacts are behind another address.
    """
    uri, name = tracking_uri(recipe), recipe.tracking.experiment
    what = f"{_without_login(uri)}: experiment {name!r}"
    client, database = _client(uri), _sqlite_file(uri)
    try:
        # A server knows where its artifacts go; those of a database file would land in the current directory.
        client.create_experiment(name, (database.parent / "mlartifacts").as_uri() if database else None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise TrackingError(f"{what} can't be opened: {_told(error, uri)}") from error
    experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{what} is deleted; restore it with `MLFLOW_TRACKING_URI={_without_login(uri)} mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or name another tracking.experiment"
        )
    _refuse_served(experiment.artifact_location, uri, what)
    return uri, experiment.experiment_id


def create_run(recipe: Recipe, run_folder: str | Path) -> RunRef:
    """Make a run, with the whole recipe as params and recipe.yaml, and git commit and library versions as tags.

    Raises:
        UserError: as `open_experiment` says.
    """
    uri, experiment_id = open_experiment(recipe)
    client = _client(uri)
    name = recipe.tracking.run_name or Path(run_folder).name
    tags = {
        "run_folder": str(run_folder),
        **versions(),
        **{f"mlflow.source.git.{key}": value for key, value in commit().items()},
    }
    run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    # As a dict: two keys of a judge's options may become one name, of which MLflow takes one value.
    named = {key[:LONGEST_NAME].rstrip("/."): value for key, value in flatten(_shareable(recipe))}
    params = (Param(key, _shorten(value)) for key, value in named.items())
    for batch in _batches(params, 100):  # the most that MLflow takes at once
        client.log_batch(run_id, params=batch)
    client.log_text(run_id, yaml.safe_dump(_shareable(recipe), sort_keys=False), "recipe.yaml")
    return RunRef(uri, experiment_id, run_id)


def find_run(recipe: Recipe, run_id: str) -> RunRef:
    """A run that exists.

    Raises:
        TrackingError: the recipe's server or database does not have it, or not its artifacts.
    """
    uri = tracking_uri(recipe)
    what = f"{_without_login(uri)}: run {run_id}"
    try:
        run = _client(uri).get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"{what} can't be read: {_told(error, uri)}") from error
    _refuse_served(run.info.artifact_uri, uri, what)
    return RunRef(uri, run.info.experiment_id, run_id)


class Tracker:
    """Writes into one run, from one process at a time.

    Metrics are sent in the background; `flush` and `finish` wait for them and raise what went wrong. A `with` block
    closes the run at its end: finished, failed after an error, or killed by a signal.

    Args:
        skip_logged: Leave out what the run has already: steps that a resumed training does again would stand there
            twice. A metric's values up to its newest step count as logged.
    """

    def __init__(self, ref: RunRef, *, skip_logged: bool = False) -> None:
        self.ref = ref
        self._client = _client(ref.uri)
        # One thread, so that steps arrive in order: what was logged before a process was killed has no gaps.
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._sending: list[Future[Any]] = []
        self._logged: dict[str, int] = {}
        if skip_logged:
            newest = self._client.get_run(ref.run_id).data.to_proto().metrics
            self._logged = {metric.key: metric.step for metric in newest}

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, (KeyboardInterrupt, Stopped)) else "FAILED")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One value a metric at an optimizer step."""
        now = int(time.time() * 1000)
        entries = [
            Metric(metric_name(name), float(value), now, step)
            for name, value in metrics.items()
            if not self.logged(name, step)
        ]
        for batch in _batches(entries, 1000):
            self._sending.append(self._sender.submit(self._client.log_batch, self.ref.run_id, metrics=batch))
        if len(self._sending) >= 100:
            self.flush()

    def logged(self, name: str, step: int) -> bool:
        """Whether the run had a metric's value of this step already; False unless `skip_logged`."""
        return step <= self._logged.get(metric_name(name), -1)

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


def ui_command(uri: str) -> str:
    """The one line that opens MLflow on a tracking URI."""
    if _is_server(uri):
        return f"open {_without_login(uri)}"
    program = Path(sys.executable).with_name("mlflow")
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return shlex.join([str(shown), "ui", "--host", HOST, "--port", PORT, "--backend-store-uri", uri])


def run_url(ref: RunRef) -> str:
    """The page of a run, once MLflow is open; it asks for the UI's view of trainings, which is not its first."""
    server = _without_login(ref.uri) if _is_server(ref.uri) else f"http://{HOST}:{PORT}"
    page = f"experiments/{ref.experiment_id}/runs/{ref.run_id}/model-metrics"
    return f"{server.rstrip('/')}/#/{page}?workflowType=machine_learning"


def versions() -> dict[str, str]:
    """Python and the libraries whose releases change results."""
    return {"version.python": platform.python_version(), **{f"version.{name}": version(name) for name in LIBRARIES}}


def commit() -> dict[str, str]:
    """The commit of this package's repository, `-dirty` with uncommitted changes; nothing when it has none."""
    here = Path(__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:  # an environment inside another project's repository must not claim that project's commit
        for command in (["ls-files", "--error-unmatch", "recipe.py"], describe):
            done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    return {"commit": done.stdout.strip()}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a recipe's tree by dotted key, as overrides write them: `reward.judges.0.name`."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, Mapping):
        children = tree.items()
    elif isinstance(tree, Sequence) and any(isinstance(value, Mapping) for value in tree):
        children = enumerate(tree)
    elif not isinstance(tree, str) and isinstance(tree, Sequence):
        tree = json.dumps(tree)
    if not children:
        yield metric_name(prefix), tree
    for key, value in children:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def metric_name(name: str) -> str:
    """A name of characters that MLflow accepts, letters, digits and `_-./ `, and no path that leads elsewhere."""
    parts = re.sub(r"[^\w\-./ ]", "_", name, flags=re.A).split("/")
    return "/".join("_" * len(part) if part in (".", "..") else part for part in parts if part) or "_"


def draw_strip(rows: Sequence[tuple[str, Frames]], caption: str) -> Image.Image:
    """Rows of evenly spaced frames below their caption, each row with its label."""
    font = ImageFont.load_default(size=16)
    margin, label, gap = 8, 52, 4
    frames = len(rows[0][1])
    shown = np.linspace(0, frames - 1, min(STRIP_FRAMES, frames)).round().astype(int)
    width = round(STRIP_HEIGHT * rows[0][1].shape[2] / rows[0][1].shape[1])
    size = (label + len(shown) * (width + gap) + margin, 32 + len(rows) * (STRIP_HEIGHT + gap) + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), caption, fill="black", font=font)
    for r, (name, clip) in enumerate(rows):
        top = 32 + r * (STRIP_HEIGHT + gap)
        draw.text((margin, top + STRIP_HEIGHT // 2 - 8), name, fill="dimgrey", font=font)
        for c, index in enumerate(shown):
            picture = Image.fromarray(clip[index]).resize((width, STRIP_HEIGHT), Image.Resampling.BICUBIC)
            sheet.paste(picture, (label + c * (width + gap), top))
    return sheet


def _client(uri: str) -> MlflowClient:
    if database := _sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        for name in ("mlflow.store.db.utils", "alembic"):  # a new database lists its migrations
            logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _refuse_served(artifacts: str, uri: str, what: str) -> None:
    """Refuse to go past a server, through its database, to what only the server can read and write."""
    if urlsplit(artifacts).scheme == "mlflow-artifacts" and not _is_server(uri):
        raise TrackingError(
            f"{what} was made by an MLflow server, which alone reaches its artifacts ({artifacts}); name the server in "
            "tracking.uri or MLFLOW_TRACKING_URI, or name another tracking.experiment"
        )


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _shareable(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    if recipe.tracking.uri:
        tree["tracking"]["uri"] = _without_login(recipe.tracking.uri)
    return tree


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _told(error: MlflowException, uri: str) -> str:
    return str(error).replace(uri, _without_login(uri))


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - len(CUT)] + CUT


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
