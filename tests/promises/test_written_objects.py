"""Files in an object store: a server that speaks S3."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from parcoll import Connection, parallel

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    """Give the `storage_options` of a server with a bucket."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    s3fs.S3FileSystem(**found).mkdir("bucket")
    yield found
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def record(x: int) -> dict[str, int]:
    """Make a row."""
    return {"x": x}


def test_files_are_objects(inline: Connection, options: dict[str, Any]) -> None:
    system = s3fs.S3FileSystem(**options)
    rows = parallel(range(1000)).map(record)
    written = rows.write_jsonl("s3://bucket/one/a.jsonl", storage_options=options)
    assert written.files == ["s3://bucket/one/a.jsonl"]
    assert [json.loads(line)["x"] for line in system.cat("bucket/one/a.jsonl").splitlines()] == [*range(1000)]
    with pytest.raises(FileExistsError):
        rows.write_jsonl("s3://bucket/one/a.jsonl", storage_options=options)
    path = "s3://bucket/two/part-*.jsonl.gz"
    rows.write_jsonl(path, rows_per_file=300, storage_options=options)
    written = (
        parallel(range(500))
        .map(record)
        .write_jsonl(path, rows_per_file=300, storage_options=options, overwrite=True)
    )
    names = [f"bucket/two/part-0000{n}.jsonl.gz" for n in (0, 1)]
    system.invalidate_cache()
    assert sorted(system.ls("bucket/two")) == ["bucket/two/_part-manifest.jsonl.gz.json", *names]
    lines = [line for name in names for line in gzip.decompress(system.cat(name)).splitlines()]
    assert [json.loads(line)["x"] for line in lines] == [*range(500)]
    assert written.bytes == sum(system.size(name) for name in names)


def test_what_cannot_be_put(inline: Connection, options: dict[str, Any]) -> None:
    def source() -> Any:
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        parallel(source).write_jsonl("s3://bucket/three/a", storage_options=options)
    assert not s3fs.S3FileSystem(**options).exists("bucket/three")
    with pytest.raises(OSError):
        parallel([1]).write_jsonl("s3://nosuchbucket/a", storage_options=options)
