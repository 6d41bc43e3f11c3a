"""One Ray cluster for all tests that need one: starting it takes longer than most of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
import ray

from rayvideo.connection import ENVIRONMENT, python_of_workers
from tests.cluster.object_store import CREDENTIALS, object_store


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[None]:
    """A one-node cluster with 4 logical CPUs, however many the machine has; tests of other folders find no Ray."""
    for name, value in {**ENVIRONMENT, **CREDENTIALS}.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=4,
        runtime_env=python_of_workers(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def store() -> Iterator[Callable[[str], str]]:
    """URI of a path in an object store, whose credentials stand in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with object_store() as uri:
            yield uri
