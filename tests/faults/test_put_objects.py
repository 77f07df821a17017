"""Objects of a store that are put while something dies: none or all are there, and nothing else is left."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from scripts import Scripts, meanwhile
from stores import listed, s3_options, s3fs, write
from victims import Victims, strike

from parcoll import Connection
from parcoll.output import staging
from parcoll.output.objects import RemoteTarget
from parcoll.output.parked import Made


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    """Give the `storage_options` of a server with a bucket."""
    with s3_options() as found:
        yield found


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
def test_a_worker_that_is_killed(cluster: Connection, options: dict[str, Any], seed: int) -> None:
    chance, system = random.Random(seed), s3fs.S3FileSystem(**options)

    def kill(ended: Any) -> None:
        for _ in range(2):
            if not ended.wait(chance.uniform(0, 0.5)) and (workers := Victims(cluster).workers()):
                strike(chance.choice(workers))

    url = f"s3://bucket/killed/p-*.{seed}"
    with meanwhile(kill):
        written = write("jsonl", url, 3000, rows_per_file=400, storage_options=options)
    names = [name.removeprefix("s3://") for name in written.files]
    assert listed(options, "killed") == [f"_p-manifest.{seed}.json", *(n.rpartition("/")[2] for n in names)]
    lines = [line for name in names for line in system.cat(name).splitlines()]
    assert [json.loads(line)["x"] for line in lines] == [*range(3000)]
    system.rm("bucket/killed", recursive=True)


SCRIPT = """
import sys, time
from parcoll import connect, parallel

def made(x):
    time.sleep(0.0002)
    return {"x": x}

url, endpoint = sys.argv[1:]
options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": endpoint}}
chain = parallel(range(3000)).map(made)
with connect(n_workers=2):
    chain.take(1)
    print("begins", flush=True)
    chain.write_jsonl(url, overwrite=True, rows_per_file=200, storage_options=options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_script_that_is_killed(
    inline: Connection, options: dict[str, Any], scripts: Scripts, seed: int
) -> None:
    system, url = s3fs.S3FileSystem(**options), "s3://bucket/script/p-*.jsonl"
    process = scripts.start(scripts.write("script.py", SCRIPT), url, options["client_kwargs"]["endpoint_url"])
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    time.sleep(random.Random(seed).uniform(0, 1.5))
    process.kill()
    process.wait()
    RemoteTarget(url, True, "test", options).check()  # of the next run
    names = [name for name in listed(options, "script") if not name.endswith(".json")]
    lines = [line for name in names for line in system.cat(f"bucket/script/{name}").splitlines()]
    assert [json.loads(line)["x"] for line in lines] in ([], [*range(3000)])
    write("jsonl", url, 10, storage_options=options, overwrite=True)
    assert listed(options, "script") == ["_p-manifest.jsonl.json", "p-00000.jsonl"]
    system.rm("bucket/script", recursive=True)
    scripts.check()


class TestKilledAtAnyRequest:
    """Whoever puts files ends at each request that changes something."""

    @pytest.mark.parametrize("before", [{}, {0: "old", 1: "old", 5: "old"}], ids=["none", "some"])
    @pytest.mark.parametrize("by_workers", [False, True])
    def test_none_or_all_are_there(
        self, monkeypatch: pytest.MonkeyPatch, before: dict[int, str], by_workers: bool
    ) -> None:
        system = fsspec.filesystem("memory")
        calls = [0, 0]  # made, and the one behind which everything ends

        def deadly(name: str) -> Any:
            call = getattr(type(system), name)

            def called(*arguments: Any, **options: Any) -> Any:
                if calls[0] == calls[1]:
                    raise SystemExit  # as all that come behind it
                calls[0] += 1
                return call(*arguments, **options)

            return called

        ended = False
        while not ended:
            for path in system.find("/b"):
                system.rm_file(path)
            for number, text in before.items():
                system.pipe_file(f"/b/p-{number:05d}", text.encode())
            calls[:] = 0, calls[1] + 1
            with monkeypatch.context() as patched:
                patched.setattr(staging, "owner", lambda: staging.socket.gethostname() + " 1 0")
                for name in ("pipe_file", "cp_file", "rm_file"):
                    patched.setattr(type(system), name, deadly(name))
                try:
                    put_two(by_workers)
                    ended = True
                except SystemExit:
                    pass
            there = {path: text for path, text in contents(system).items() if "p-" in path}
            target = RemoteTarget("memory://b/p-*", True, "test", {})
            target.check()
            target.abandon()
            found = contents(system)
            listed = json.loads(found.pop("_p-manifest", "{}")) if "_p-manifest" in found else {}
            listed = json.loads(found.pop("_p-manifest.json", json.dumps(listed)))
            new = {"p-00000": "new", "p-00001": "new"}
            assert found in ({f"p-{number:05d}": text for number, text in before.items()}, new), there
            assert "unfinished" not in listed
        assert found == new
        assert calls[1] >= 4


def put_two(by_workers: bool) -> None:
    """Put two files, as an evaluation does."""
    target = RemoteTarget("memory://b/p-*", True, "test", {})
    target.begin()
    try:
        if by_workers:
            parking, made = target.parking(), []
            for name in target.names(2):
                path = parking.path(name)
                parking.system.pipe_file(path, b"new")
                made.append(Made(path, 1, 3, 0.0, None))
            target.adopt(made)
        else:
            for number in range(2):
                with target.open(number) as file:
                    file.write(b"new")
            target.commit()
    finally:
        target.abandon()


def contents(system: Any) -> dict[str, str]:
    """Return what is there, but for what is hidden."""
    found = {path.rpartition("/")[2]: system.cat(path).decode() for path in system.find("/b")}
    assert all(not name.startswith(".parcoll-") or name.count("+") == 3 for name in found)
    return found
