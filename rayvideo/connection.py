"""The one place that starts Ray, or connects to one: what keeps it from that ends in a line with the mend."""

from __future__ import annotations

import logging
import math
import os
import re
import resource
import secrets
import shlex
import signal
import sys
import time
from pathlib import Path

import grpc
import ray
from ray._private import services
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator
from ray.exceptions import AuthenticationError

import rayvideo
from rayvideo import capacity, worker_path
from rayvideo.errors import UserError
from rayvideo.recipe import Recipe

# What Ray must find in the environment before it starts; a value that the user set wins.
ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its core writes errors to the terminal that are none, such as on actor pools
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # some clouds give 30 s of notice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report() waits for the controller's poll: 2 s otherwise
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line twice
    # Watchers that a single run does not need, at seconds of start-up each.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_worker_niceness": "0",  # 15 otherwise: beside any other work a training would starve
}
# What Ray says in every job's log, and means nothing there: we start more processes than there are cores, and the actor
# that watches for preemption is never restarted.
NOISE = "worker processes have been started on node|has constructor arguments in the object store"
MIN_CPUS = 4
UNLIMITED = 10_000.0
PATIENCE_S = 10.0  # for a cluster to answer
SESSION = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # the longest that Ray adds to TMPDIR
LONGEST_SOCKET = 107  # bytes of a path
SHORT = "/tmp"
OPEN_FILES = 1024  # with fewer, Ray's processes die of it and say something else
WANTED_FILES = 65536

logger = logging.getLogger(__name__)


class StartError(UserError, RuntimeError):
    """Ray can't be started, or the cluster that is meant can't be reached: the message says what to do."""


def start_ray(recipe: Recipe, *parts: capacity.Part) -> None:
    """Connect to the cluster of RAY_ADDRESS, which `ray job submit` sets, or start a Ray for this process.

    A local Ray counts enough logical CPUs for every part of the recipe to be scheduled, however few cores there are:
    parts that wait for each other's CPUs would hang. It has every custom resource that the recipe names.

    Raises:
        StartError: within half a minute; there is no Ray to be had.
        CapacityError: these `parts` of the recipe don't fit on this machine.
    """
    if not ray.is_initialized():  # by jobs/demo.py
        _initialize(recipe)
    capacity.check(recipe, parts, may_grow=not on_this_machine())


def on_this_machine() -> bool:
    """Whether Ray runs, or is to be started, on this machine alone."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _initialize(recipe: Recipe) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _leave_out(NOISE)
    _allow_files()
    if on_this_machine():
        logger.info("starting Ray on this machine")
        _start(recipe)
    else:
        address = os.environ["RAY_ADDRESS"]
        logger.info("connecting to Ray at %s", address)
        _connect(address)
    signal.signal(signal.SIGTERM, interrupt)  # ray.init() has put a handler of its own there


def interrupt(number: int, _: object) -> None:
    """A signal's handler: what is open is closed, as Ctrl-C does it."""
    raise KeyboardInterrupt(number)


def submitted() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def logical_cpus(recipe: Recipe, cores: int) -> int:
    """CPUs that a one-machine Ray must count so that the greediest phase of `recipe` and a task beside it fit."""
    data, training, evaluation = recipe.data, recipe.training, recipe.evaluation
    judges = sum(judge.num_cpus * judge.replicas.max for judge in (*recipe.reward.judges, *evaluation.judges))
    phases = (
        data.encoders * data.encoder_cpus + data.decode_cpus,
        training.workers.max * training.cpus_per_worker + judges,
        evaluation.workers * evaluation.cpus_per_worker + judges,
    )
    return max(MIN_CPUS, cores, math.ceil(max(phases)) + 1)


def _leave_out(pattern: str) -> None:
    """Keep lines of Ray out of the output; RAY_DEDUP_LOGS_SKIP_REGEX, which does so too, is read at Ray's import."""
    for printed in (stdout_deduplicator, stderr_deduplicator):
        own = [printed.skip_re.pattern] if printed.skip_re else []
        printed.skip_re = re.compile("|".join(dict.fromkeys([*own, pattern])))


def _start(recipe: Recipe) -> None:
    folder = temporary_folder()
    _carry_token()
    try:
        ray.init(
            address="local",
            job_config=worker_path.OwnPath(),
            num_cpus=logical_cpus(recipe, os.cpu_count() or 1),
            resources=dict.fromkeys(capacity.custom_resources(recipe), UNLIMITED),
            runtime_env=python_of_workers(),
            include_dashboard=False,
            # What libraries say in dozens of processes is kept in Ray's session folder; errors come as exceptions.
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    except Exception as error:  # Ray raises plain Exception too
        raise StartError(
            f"Ray does not start on this machine: {_words(error)}. Its own logs, if it came so far: "
            f"{folder}/session_latest/logs"
        ) from error


def python_of_workers() -> dict[str, str]:
    """A runtime_env with this Python's path as a shell reads it: Ray hands it to one as it is, spaces and all.

    Empty where the path needs no quotes. A cluster with such a path is one of `make cluster`, on this machine.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def temporary_folder() -> str:
    """Where a local Ray keeps sockets, logs and what does not fit into memory: below RAY_TMPDIR or TMPDIR.

    Paths of sockets are limited to some hundred bytes, so a long one gives way to /tmp.

    Raises:
        StartError: it can't be written.
    """
    option = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    base = os.environ[option] if option else SHORT
    if len(os.fsencode(os.path.join(base, SESSION))) > LONGEST_SOCKET:
        logger.warning("%s=%s is too long for the paths of Ray's sockets, which lie in %s instead", option, base, SHORT)
        base = SHORT
    folder = Path(base, "ray")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".rayvideo-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartError(
            f"Ray can't write into its folder for sockets and logs: {error}; set RAY_TMPDIR to a folder of yours with "
            "a short path"
        ) from error
    return str(folder)


def _carry_token() -> None:
    """Give a local Ray a token that ends with it; Ray would write one into the home folder, which may be read-only."""
    stored = os.path.expanduser("~/.ray/auth_token")  # a user without a home is no error here, as Path makes it
    if not any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))) and not os.path.isfile(stored):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _allow_files() -> None:
    """Raise this process's limit of open files, which Ray's inherit, as far as it may.

    Raises:
        StartError: that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise StartError(
            f"a process may open only {hard} files here (`ulimit -Hn`), and Ray needs {OPEN_FILES}; raise the limit in "
            "/etc/security/limits.conf, or start the container with --ulimit nofile=65536"
        )


def _connect(address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        StartError: naming RAY_ADDRESS and what is there.
    """
    given = f"RAY_ADDRESS={address}"
    if "://" in address:
        raise StartError(
            f"{given} is an address for `ray job submit`, by which jobs run on that cluster (docs/clusters.md). To run "
            "on this machine alone, unset RAY_ADDRESS, or call it RAY_API_SERVER_ADDRESS, which only `ray job` looks at"
        )
    mend = "start the cluster, mend the address, or unset RAY_ADDRESS to run on this machine alone"
    try:
        found = services.canonicalize_bootstrap_address(address)
    except Exception as error:  # it raises what comes
        raise StartError(f"{given}: {_words(error)}; {mend}") from error
    if not found or not _answers(found):
        raise StartError(f"{given}: no Ray answers there within {PATIENCE_S:g} s; {mend}")
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        _refuse_elsewhere(found, given)
        # A job has its working_dir on every node; any other driver sends this package along.
        package = [] if submitted() else [Path(rayvideo.__file__).parent]
        environment = worker_path.runtime_env(package)
        ray.init(
            address=found,
            job_config=worker_path.OwnPath(),
            runtime_env={**environment, **python_of_workers()},
            logging_level=logging.WARNING,
        )
    except AuthenticationError as error:
        raise StartError(
            f"{given}: the cluster asks for a token, and this process has none or another. Set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the cluster's head"
        ) from error
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        other = "; `ray job submit` runs the job with the cluster's own" if "Version mismatch" in str(error) else ""
        raise StartError(f"{given}: {_words(error)}{other}") from error


def _answers(address: str) -> bool:
    """Whether something that speaks gRPC is there; ray.init() would wait for minutes."""
    channel = init_grpc_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        return True
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()


def _refuse_elsewhere(address: str, given: str) -> None:
    """Refuse a machine that is no node of the cluster, on which a driver can't run."""
    until = time.monotonic() + PATIENCE_S
    nodes = services.GcsClient(address=address).get_all_node_info(timeout=PATIENCE_S)
    while not {node.hex() for node in nodes} & set(services.find_node_ids()):
        if time.monotonic() > until:
            raise StartError(
                f"{given}: this machine is no node of that cluster; submit the job with `ray job submit`, which runs "
                "it there, or unset RAY_ADDRESS to run on this machine alone"
            )
        time.sleep(1)
        nodes = services.GcsClient(address=address).get_all_node_info(timeout=PATIENCE_S)


def _words(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(str(error).split()) or type(error).__name__
