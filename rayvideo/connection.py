"""The one place that starts Ray, or connects to a cluster; what is in the way is said in one line, with the mend."""

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

# Environment variables that Ray reads when it starts; a value that the user has set is left.
ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its core writes errors to the terminal that are none, such as on actor pools
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # some clouds give 30 s of notice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report() waits for the controller's poll: 2 s otherwise
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what workers print comes twice
    # Services that a single run does not need, and that cost seconds of start-up each.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_worker_niceness": "0",  # it is 15 otherwise, with which a training gets no core while anything else runs
}
# Warnings in every job's log that mean nothing there: we do start more processes than there are cores, and the actor
# that watches for preemption, which the second one is about, is never restarted.
NOISE = "worker processes have been started on node|has constructor arguments in the object store"
MIN_CPUS = 4  # logical ones that a local Ray has at least
UNLIMITED = 10_000.0  # of each custom resource that a local Ray has
PATIENCE_S = 10.0  # for a cluster to answer
SESSION = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # the longest that Ray adds to TMPDIR
LONGEST_SOCKET = 107  # bytes of a path
SHORT = "/tmp"  # where sockets lie if TMPDIR is too long
OPEN_FILES = 1024  # with a lower limit Ray's processes die, with messages that name other reasons
WANTED_FILES = 65536  # the limit that is set if it may be

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
    if not ray.is_initialized():  # jobs/demo.py starts it once for several jobs
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
    """Handle a signal as Ctrl-C is handled: by an exception, so that everything that is open is closed."""
    raise KeyboardInterrupt(number)


def submitted() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def logical_cpus(recipe: Recipe, cores: int) -> int:
    """CPUs that a one-machine Ray must count so that the greediest phase of `recipe` and a task beside it fit."""
    data, training, evaluation = recipe.data, recipe.training, recipe.evaluation
    judges = sum(judge.num_cpus * judge.replicas.max for judge in (*recipe.reward.judges, *evaluation.judges))
    generation = evaluation.workers * evaluation.cpus_per_worker
    guards = generation if evaluation.guards else 0
    phases = (
        data.encoders * data.encoder_cpus + data.decode_cpus,
        training.workers.max * training.cpus_per_worker + judges + guards,
        generation + judges,
    )
    return max(MIN_CPUS, cores, math.ceil(max(phases)) + 1)


def _leave_out(pattern: str) -> None:
    """Keep lines of Ray that match out of the output.

    The public way is the variable RAY_DEDUP_LOGS_SKIP_REGEX, which Ray reads when it is imported: too late for us.
    """
    for printed in (stdout_deduplicator, stderr_deduplicator):
        before = [printed.skip_re.pattern] if printed.skip_re else []
        printed.skip_re = re.compile("|".join(dict.fromkeys([*before, pattern])))


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
    except Exception as error:  # Ray raises errors of many kinds, plain `Exception` among them
        raise StartError(
            f"Ray does not start on this machine: {_words(error)}. Its own logs, if it came so far: "
            f"{folder}/session_latest/logs"
        ) from error


def python_of_workers() -> dict[str, str]:
    """A runtime_env with the path of this Python in quotes, which Ray hands to a shell; empty where it needs none.

    Of clusters, only those of `make cluster` can have a path that does: they run on this machine, from its checkout.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def temporary_folder() -> str:
    """Where a local Ray keeps sockets, logs and what does not fit into memory: below RAY_TMPDIR or TMPDIR.

    The system limits paths of sockets to about a hundred bytes; in place of a longer one, /tmp is used.

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
    """Give a local Ray a token that lives as long as it does, unless there is one.

    Ray would write one into the home folder, which may be read-only.
    """
    stored = os.path.expanduser("~/.ray/auth_token")  # `Path.home` would raise for a user without a home
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
    except Exception as error:  # it raises errors of many kinds
        raise StartError(f"{given}: {_words(error)}; {mend}") from error
    if not found or not _answers(found):
        raise StartError(f"{given}: no Ray answers there within {PATIENCE_S:g} s; {mend}")
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        _refuse_elsewhere(found, given)
        # Code of a submitted job is on every node, in its working_dir. Any other driver sends this package along.
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
    """Whether something answers there by gRPC, as Ray does; `ray.init` would wait for minutes to find out."""
    channel = init_grpc_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        return True
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()


def _refuse_elsewhere(address: str, given: str) -> None:
    """Refuse to go on if this machine is no node of the cluster: a driver has to run on one."""
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
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
