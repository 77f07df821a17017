"""Files in an object store: a server that speaks S3."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import bare_cluster
from stores import listed, row, s3_options, s3fs, write

from parcoll import Connection, connect, parallel
from parcoll.output import objects, staging
from parcoll.output.objects import RemoteTarget


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    """Give the `storage_options` of a server with a bucket."""
    with s3_options() as found:
        yield found


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


class TestByWorkers:
    """Several files are made and put by the workers."""

    @pytest.mark.parametrize(
        "format",
        ["csv", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jsonl.gz", "parquet"))],
    )
    def test_they_are_those_of_a_folder(
        self,
        cluster: Connection,
        options: dict[str, Any],
        tmp_path: Path,
        format: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        system = s3fs.S3FileSystem(**options)
        monkeypatch.setattr(RemoteTarget, "_put", None)  # this process puts the list alone
        for settings in ({"bytes_per_file": 9_000}, {"rows_per_file": 900, "overwrite": True}):
            for old in tmp_path.iterdir():
                old.unlink()
            here = write(format, tmp_path / f"p-*.{format}", 3000, **settings)
            url = f"s3://bucket/{format}/p-*.{format}"
            there = write(format, url, 3000, storage_options=options, **settings)
            assert (there.rows, there.bytes) == (here.rows, here.bytes)
            assert there.files == [url.replace("*", f"{n:05d}") for n in range(len(here.files))]
            system.invalidate_cache()
            found = {path.rpartition("/")[2]: system.cat(path) for path in system.ls(f"bucket/{format}")}
            listed = json.loads(found.pop(f"_p-manifest.{format}.json"))
            assert found == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            assert listed == {"files": [{"name": n, "bytes": len(found[n])} for n in sorted(found)]}

    def test_no_rows_and_rows_that_do_not_fit(self, cluster: Connection, options: dict[str, Any]) -> None:
        system = s3fs.S3FileSystem(**options)
        url = "s3://bucket/none/p-*.csv"
        assert parallel([]).map(row).write_csv(url, storage_options=options).rows == 0
        assert system.cat("bucket/none/p-00000.csv") == b""
        with pytest.raises(ValueError, match="has a column 'late'") as raised:
            parallel(range(2000)).map(row).write_csv(url, storage_options=options, overwrite=True)
        assert "element 701" in str(raised.value)
        with pytest.raises(TypeError, match="not JSON serializable") as other:
            parallel([1, 2, {3}]).map(lambda x: x).write_jsonl(url, storage_options=options, overwrite=True)
        assert "element 2" in str(other.value.__notes__)
        assert listed(options, "none") == ["_p-manifest.csv.json", "p-00000.csv"]

    @pytest.mark.slow
    def test_workers_elsewhere(
        self,
        options: dict[str, Any],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Those that cannot put anything send what they have encoded to this process."""
        system = s3fs.S3FileSystem(**options)
        monkeypatch.setenv(
            "AWS_EC2_METADATA_DISABLED", "true"
        )  # else they look for a key there, for a minute
        with bare_cluster(tmp_path / "bare", 2) as bare, connect(bare.file):
            url = "s3://bucket/bare/p-*.jsonl.gz"
            written = write("jsonl", url, 1000, rows_per_file=300, storage_options=options)
            assert not caplog.records
            lines = [
                line for name in written.files for line in gzip.decompress(system.cat(name)).splitlines()
            ]
            assert [json.loads(line)["x"] for line in lines] == [*range(1000)]
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
            keys = options | {"key": None, "secret": None}
            write("jsonl", url, 700, rows_per_file=300, storage_options=keys, overwrite=True)
            assert "so that all go through this process" in caplog.text
        names = ["_p-manifest.jsonl.gz.json", *(f"p-0000{n}.jsonl.gz" for n in range(3))]
        assert listed(options, "bare") == names


def test_what_another_attempt_has_put_is_removed(inline: Connection, options: dict[str, Any]) -> None:
    system, me = s3fs.S3FileSystem(**options), staging.owner().replace(" ", "=")
    host = staging.socket.gethostname()
    hidden = [
        f".parcoll-writing-{me}+0011+aa+p-00003.x",  # of a run of this process, which has ended
        f".parcoll-writing-{me}+0011+ab+part",
        f".parcoll-writing-{host}=1=0+0012+ac+p-00001.x",  # of a process that has
    ]
    others = [
        ".parcoll-writing-another=1=0+0012+ad+p-00001.x",  # of another machine
        f".parcoll-writing-{host}=1=0+0012+ad+q-00001.x",  # of another path
        "p-1.x",
    ]
    for name in hidden + others:
        system.pipe_file(f"bucket/twice/{name}", b"x")
    for name in (hidden[0], hidden[2], others[0]):  # put in parts, of which the last one never came
        system.call_s3("create_multipart_upload", Bucket="bucket", Key=f"twice/{name}")
    assert not objects._running
    parallel([1]).write_jsonl("s3://bucket/twice/p-*.x", storage_options=options)
    assert listed(options, "twice") == sorted(["_p-manifest.x.json", "p-00000.x", *others])
    uploads = system.list_multipart_uploads("bucket")
    assert [upload["Key"] for upload in uploads] == [f"twice/{others[0]}"]
    assert not objects._running
