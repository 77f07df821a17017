"""A server that speaks S3, for tests that put objects there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec.asyn
import pytest

from parcoll import parallel

fsspec.asyn.get_loop()  # starts the thread of fsspec's event loop, which lasts as long as the process
s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@contextmanager
def s3_options() -> Iterator[dict[str, Any]]:
    """Give the `storage_options` of a server with a bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    try:
        system = s3fs.S3FileSystem(**found)
        if system.exists("bucket"):  # of another server of this process
            system.rm("bucket", recursive=True)
        system.mkdir("bucket")
        yield found
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def row(x: int) -> dict[str, Any]:
    """Make a row, not too fast; later ones have a column more, and floats."""
    time.sleep(0.0001)
    return {"x": x, "text": "é" * (x % 7)} | ({"late": None} if x > 700 else {})


COLUMNS = ["x", "text", "late"]


def write(format: str, path: Any, count: int, **options: Any) -> Any:
    """Write rows in a format."""
    rows = parallel(range(count)).map(row)
    if format == "csv":
        return rows.write_csv(path, columns=COLUMNS, **options)
    return (
        rows.write_jsonl(path, **options)
        if format.startswith("jsonl")
        else rows.write_parquet(path, **options)
    )


def listed(options: dict[str, Any], folder: str) -> list[str]:
    """Return the names of all objects of a folder."""
    system = s3fs.S3FileSystem(**options)
    system.invalidate_cache()
    return sorted(path.rpartition("/")[2] for path in system.find(f"bucket/{folder}"))
