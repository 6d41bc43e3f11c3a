"""What all jobs share on the command line: arguments, logging, errors without tracebacks, and a Ray to run on."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

import rayvideo
from rayvideo import capacity, worker_path
from rayvideo.data.storage import is_uri
from rayvideo.errors import RecipeError, Stopped, UserError
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
}
MIN_CPUS = 4
UNLIMITED = 10_000.0


def recipe_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with `--recipe FILE` and any number of `key=value` (as `args.recipe`, `args.overrides`)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--recipe", required=True, metavar="FILE", help="YAML recipe, see jobs/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change an option, e.g. training.lr=1e-4")
    return parser


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and call `main`.

    A `UserError` ends the process with its message and exit code 1. SIGTERM, with which `ray job stop` and process
    managers end it, and Ctrl-C close what is open first; the exit code is 128 + the signal's number, 143 and 130.
    """
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(args)
    except UserError as error:
        # Raised on a worker, it comes wrapped together with the worker's traceback.
        sys.exit(f"error: {error.cause if isinstance(error, RayTaskError) else error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    finally:
        if ray.is_initialized():
            ray.shutdown()


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def refuse_lost(written: Mapping[str, str | None]) -> None:
    """Refuse a submitted job's relative paths for results: its working folder is a copy, which Ray deletes later.

    Args:
        written: Option -> the path or URI that the job would write to.

    Raises:
        RecipeError: naming the option.
    """
    for option, path in written.items():
        if submitted() and path is not None and not is_uri(path) and not Path(path).is_absolute():
            raise RecipeError(
                f"{option} {path!r} is relative, and the folder that a submitted job runs in is a copy that Ray "
                "deletes; name a folder that all nodes see, or a URI such as s3://bucket/runs"
            )


def submitted() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def start_ray(recipe: Recipe, *parts: capacity.Part) -> None:
    """Connect to the cluster of RAY_ADDRESS, which `ray job submit` sets, or start a Ray for this process.

    A local Ray counts enough logical CPUs for every part of the recipe to be scheduled, however few cores there are:
    parts that wait for each other's CPUs would hang. It has every custom resource that the recipe names.

    Raises:
        CapacityError: these `parts` of the recipe don't fit on this machine.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" in os.environ:
        # A job has its working_dir on every node; any other driver sends this package along.
        package = [] if submitted() else [Path(rayvideo.__file__).parent]
        environment = worker_path.runtime_env(package)
        ray.init(job_config=worker_path.OwnPath(), runtime_env=environment, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            job_config=worker_path.OwnPath(),
            num_cpus=logical_cpus(recipe, os.cpu_count() or 1),
            resources=dict.fromkeys(capacity.custom_resources(recipe), UNLIMITED),
            include_dashboard=False,
            # What libraries say in dozens of processes is kept in Ray's session folder; errors come as exceptions.
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    signal.signal(signal.SIGTERM, _interrupt)  # ray.init() has put a handler of its own there
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plan and resources at every execution
    capacity.check(recipe, parts, may_grow="RAY_ADDRESS" in os.environ)


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
