"""What all jobs share on the command line: arguments, logging, errors without tracebacks."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from rayvideo.connection import interrupt, submitted
from rayvideo.errors import RecipeError, Stopped, UserError
from rayvideo.paths import argument
from rayvideo.storage import is_uri


def recipe_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with `--recipe FILE` and any number of `key=value` (as `args.recipe`, `args.overrides`)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--recipe", required=True, type=argument, metavar="FILE", help="YAML recipe, see jobs/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change an option, e.g. training.lr=1e-4")
    return parser


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and call `main`.

    A `UserError` ends the process with its message and exit code 1. SIGTERM, with which `ray job stop` and process
    managers end it, and Ctrl-C close what is open first; the exit code is 128 + the signal's number, 143 and 130.
    """
    signal.signal(signal.SIGTERM, interrupt)
    found_running = ray.is_initialized()  # a job of jobs/demo.py leaves it to the next one
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(parser.parse_intermixed_args())
    except UserError as error:
        # Raised on a worker, it comes wrapped together with the worker's traceback.
        sys.exit(f"error: {error.cause if isinstance(error, RayTaskError) else error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt as ended:
        sys.exit(128 + (ended.args[0] if ended.args else signal.SIGINT))
    finally:
        if ray.is_initialized() and not found_running:
            ray.shutdown()


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
