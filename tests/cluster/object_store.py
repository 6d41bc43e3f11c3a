"""A local object store that speaks S3: moto's server on the loopback device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs
from moto.server import ThreadedMotoServer

# Read by pyarrow; the store takes any. They must be set before Ray starts: its workers have its environment.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def object_store() -> Iterator[Callable[[str], str]]:
    """URI of a path in a bucket of a store that lives as long as the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        query = f"scheme=http&endpoint_override={host}:{port}"
        store, _ = pa.fs.FileSystem.from_uri(f"s3://bucket?{query}&allow_bucket_creation=true")
        store.create_dir("bucket")
        yield lambda path: f"s3://bucket/{path}?{query}"
    finally:
        server.stop()
