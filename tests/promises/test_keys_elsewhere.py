"""Keys on workers that others have started: of other hash seeds, and with a scratch that all reach."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import resource
import shutil
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from operator import itemgetter
from pathlib import Path, PureWindowsPath
from typing import Any

import distributed
import fsspec
import pytest
from bare import bare_cluster
from keyed import answers, first, grouped, make_tasks_small, of_python, pairs
from own_keys import OwnKey

from parcoll import ConnectError, Connection, WorkerSetupError, connect, parallel
from parcoll.cluster import engine
from parcoll.connecting import scratch as scratches
from parcoll.connecting.scratch import PREFIX
from parcoll.keys import exchange, ordering, runs, store
from parcoll.keys.gathering import Groups
from parcoll.keys.slots import written
from parcoll.output import staging
from parcoll.wire.own_modules import sources_for


@dataclasses.dataclass(frozen=True)
class Place:
    """A key of a user's."""

    name: str
    more: Any = None


@pytest.fixture(scope="module")
def other_seeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Evaluate on two workers of which each has a hash seed of its own."""
    with bare_cluster(tmp_path_factory.mktemp("seeds"), 2) as bare, connect(bare.address) as connection:
        yield connection


@pytest.fixture(scope="module")
def cluster(other_seeds: Connection, cluster: Connection) -> Connection:
    """The local cluster is asked for behind the other one: who was asked for last evaluates."""
    return cluster


def test_workers_of_other_hash_seeds(other_seeds: Connection) -> None:
    """Keys that are known are cut again by what is written in them; others are refused."""
    keys = ["a", "b", None, ("a", None), ("b", 1.0), ("b", True), 1, 1.0, b"a", Decimal(1)]
    keys += [datetime.date(2020, 1, 1), frozenset(["a", 1]), frozenset([1.0, "a"])]
    elements = [(key, at) for at, key in enumerate(keys * 40)]
    chain = parallel(elements, partition_size=9)
    expected = grouped(elements, first)
    assert list(chain.group_by(first)) == list(expected.items())
    assert list(chain.count_by(first).items()) == [(key, len(found)) for key, found in expected.items()]
    assert list(chain.distinct(first)) == [found[0] for found in expected.values()]
    folded = chain.fold_by(first, lambda found, x: [*found, x[1]], [], lambda one, other: one + other)
    assert list(folded) == [(key, [at for _, at in found]) for key, found in expected.items()]
    places = [Place("a"), Place("b", ("c", 1.0)), Place("a", None), Place("b", ("c", True))] * 40
    assert parallel(places, partition_size=9).count_by() == Counter(places)
    paths = [PureWindowsPath(f"C:/{x % 4}") for x in range(400)]
    points = parallel(paths, partition_size=9)
    assert points.count_by() == Counter(paths)  # all of them are cut again by one worker
    with pytest.raises(
        TypeError, match=r"keys of PureWindowsPath have another hash on each of these workers"
    ):
        written(paths[0])  # which those of several workers would end in
    assert len(list(points.distinct())) == 4


@pytest.fixture
def scratch(cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the local cluster a scratch."""
    place = scratches.Place(tmp_path / "scratch")
    place.check()
    monkeypatch.setattr(cluster.engine, "scratch", place)
    return tmp_path / "scratch"


def test_pieces_go_through_a_scratch(
    cluster: Connection, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are the same, also where slots are cut again, and nothing is left."""
    elements = [(key, at + 10**200) for key, at in pairs(3000, 700)]
    assert answers(elements, partition_size=700) == of_python(elements)
    chain = parallel(elements, partition_size=700).group_by(first)
    assert chain.map(lambda group: len(group[1])).sum() == 3000
    assert chain.stats.bytes_spilled > 100_000
    make_tasks_small(monkeypatch)
    elements = elements[:200] + [(5, at) for at in range(10**99, 10**99 + 100)]
    chain = parallel(elements, partition_size=150)
    assert list(chain.group_by(first)) == list(grouped(elements, first).items())
    assert list(chain.sorted(first)) == sorted(elements, key=first)
    assert list(parallel(elements).sorted().map(first).persist()) == sorted(map(first, elements))
    assert os.listdir(scratch) == []


def test_nothing_is_left_there_whatever_ends_it(cluster: Connection, scratch: Path) -> None:
    """An iterator that is left, `take`, an error in each phase; a folder is there meanwhile."""
    elements = [(at * 7 % 500, at + 10**200) for at in range(3000)]
    chain = parallel(elements, partition_size=300).sorted(first)
    found = iter(chain)
    assert next(found) == (0, 10**200)
    (folder,) = os.listdir(scratch)
    assert folder.startswith(PREFIX)
    assert len(os.listdir(scratch / folder)) == 11
    found.close()
    assert os.listdir(scratch) == []
    assert chain.take(3) == sorted(elements)[:3]
    for broken in (chain.map(lambda x: 1 / x[0]), parallel(elements).sorted(lambda x: 1 // (x[0] - 3))):
        with pytest.raises(ZeroDivisionError) as caught:
            list(broken)
        assert os.listdir(scratch) == []  # though the error has the frames, and they what they read from
        del caught
    for number, _ in enumerate(chain):
        if number == 2000:
            break
    del found, chain
    assert os.listdir(scratch) == []


@contextlib.contextmanager
def full(pids: set[int]) -> Iterator[None]:
    """Let no process of these write more than a few bytes into a file."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux alone limits another process")
def test_a_scratch_that_is_full_is_told(cluster: Connection, scratch: Path) -> None:
    """In each phase that writes there; and once there is room again, all is as ever."""
    elements = [(key, at + 10**200) for key, at in pairs(3000, 700)]
    chain = parallel(elements, partition_size=700)
    workers = set(parallel(range(20), partition_size=1).map(lambda _: time.sleep(0.05) or os.getpid()))
    assert len(workers) == 2
    for what, broken in (("group_by", chain.group_by(first)), ("sorted", chain.sorted(first))):
        with full(workers), pytest.raises(WorkerSetupError) as caught:
            list(broken)
        text = str(caught.value)
        assert text.startswith(
            f"a worker cannot put pieces of {what}(itemgetter) into scratch='{scratch}' (OSError: "
        )
        assert text.endswith("name a place in connect() that this process and all workers can read and write")
        del caught
        assert os.listdir(scratch) == []
    assert list(chain.group_by(first)) == list(grouped(elements, first).items())
    assert list(chain.sorted(first)) == sorted(elements, key=first)


def test_a_piece_that_is_gone_is_told(
    cluster: Connection, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is a place that workers do not see."""
    elements = [(at, at + 10**200) for at in range(3000)]

    starts = runs.Ranges._starts

    def removed(self: Any, *given: Any) -> Any:
        for piece in scratch.glob("*/[0-9a-f]*"):
            if piece.name != store.MARKER:
                piece.unlink()
        return starts(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(runs.Ranges, "_starts", removed)
        with pytest.raises(WorkerSetupError, match=r"a piece that was put into scratch='.*' cannot be read"):
            list(parallel(elements, partition_size=500).sorted(first))

    def elsewhere() -> Iterator[Any]:
        (folder,) = scratch.iterdir()
        shutil.rmtree(folder)
        yield from elements

    with pytest.raises(WorkerSetupError, match=r"cannot put pieces of group_by\(.*\) into scratch='"):
        list(parallel(elsewhere()).group_by(first))
    assert os.listdir(scratch) == []


def test_what_a_killed_script_has_left_is_removed(tmp_path: Path) -> None:
    """By the next `connect` of that machine; what others use stays, and files of other names."""
    dead = staging.owner().split()
    dead[1] = "999999999"
    names = [f"{PREFIX}{'='.join(dead)}+ab", f"{PREFIX}{staging.owner().replace(' ', '=')}+ab"]
    names += [f"{PREFIX}other=17=4+ab", "data"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / store.MARKER).touch()
    scratches.Place(tmp_path.as_uri()).check()
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_a_scratch_that_cannot_be_used_is_refused_by_connect(tmp_path: Path) -> None:
    """Before anything is started."""
    (tmp_path / "file").touch()
    for given in (tmp_path / "file" / "x", "nonsense://x", "http://127.0.0.1:9/x"):
        with pytest.raises(ConnectError, match=r"scratch='.*' cannot be written to from here: .*; name"):
            connect("127.0.0.1:9", scratch=given)
    with pytest.raises(ValueError, match=r"scratch='memory://x' is in the memory of one process"):
        connect("127.0.0.1:9", scratch="memory://x")
    for wrong in (7, b"x", ""):
        with pytest.raises((TypeError, ValueError), match="scratch must be the URL or the path"):
            connect("127.0.0.1:9", scratch=wrong)
    with pytest.raises(TypeError, match='"inline" has no workers'):
        connect("inline", scratch=tmp_path)


def test_a_scratch_of_bare_workers(other_seeds: Connection, tmp_path: Path, monkeypatch: Any) -> None:
    """They have no parcoll of their own, and other hash seeds: pieces are cut again."""
    with connect(other_seeds.engine.client, scratch=str(tmp_path)):
        elements = [(f"key {key}", at + 10**200) for key, at in pairs(3000, 700)]
        chain = parallel(elements, partition_size=700)
        assert list(chain.group_by(first)) == list(grouped(elements, first).items())
        assert list(chain.sorted(first)) == sorted(elements, key=first)
    assert os.listdir(tmp_path) == []


def test_modules_of_the_elements_go_along_with_each_phase(
    other_seeds: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has come meanwhile has to unpickle elements, though it calls no function of theirs."""
    sent: list[Any] = []

    def noted(*arguments: Any) -> Any:
        sent.append(sources_for(*arguments))
        return sent[-1]

    monkeypatch.setattr(engine, "sources_for", noted)
    options: Any = {"client": other_seeds.engine.client, "partition_size": 9}
    chain = parallel(range(30), **options).map(OwnKey)
    counts = chain.count_by(lambda key: str(key.x))
    assert len(counts) == 30
    assert len(list(chain.sorted(lambda key: -key.x).group_by(lambda key: key.x % 2))) == 2
    assert len(sent) >= 5  # six, where the workers were slow: then groups are opened there
    assert all("own_keys" in names for names in sent)


def test_two_clients_at_once(other_seeds: Connection) -> None:
    """Each has its own answer."""
    found: list[Any] = []

    def work() -> None:
        with distributed.Client(other_seeds.address, set_as_default=False) as client:
            found.append(list(parallel(pairs(900, 50), client=client, partition_size=90).group_by(first)))

    thread = threading.Thread(target=work)
    thread.start()
    elements = pairs(900, 70, 2)
    for _ in range(3):
        assert list(parallel(elements, client=other_seeds.engine.client).sorted()) == sorted(elements)
    thread.join()
    assert found == [list(grouped(pairs(900, 50), first).items())]


def test_a_scratch_in_a_bucket(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are those of fsspec's configuration."""
    from stores import listed, s3_options  # lazy: boto

    with s3_options() as options:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        place = scratches.Place("s3://bucket/some/scratch")
        place.check()
        monkeypatch.setattr(cluster.engine, "scratch", place)
        elements = [(key, at + 10**200) for key, at in pairs(3000, 700)]
        chain = parallel(elements, partition_size=700)
        assert list(chain.group_by(first)) == list(grouped(elements, first).items())
        found = iter(chain.sorted(first))
        assert next(found) == min(elements)
        assert len(listed(options, "some")) == 6
        found.close()
        assert listed(options, "some") == []


def test_a_task_that_merges_takes_a_small_part_of_a_worker_s_memory() -> None:
    around = exchange.Around(lambda: 2, lambda: 640 * 2**20, lambda elements, step: map(step.call, elements))
    merging = exchange.Exchange("group_by", Groups()).within(around)
    assert merging.most == 20 * 2**20
    assert merging.target(10**12) == 20 * 2**20


def test_sorted_sends_large_elements_once(cluster: Connection) -> None:
    """A range that begins behind such an element of a run has no use for it."""
    size, count = 100_000, 120
    chain = parallel(range(count), partition_size=6).map(lambda x: (x * 7 % 31, x, bytes(size)))
    ordered = chain.sorted(first).map(itemgetter(0, 1))  # a step behind it: workers sort the ranges
    assert list(ordered) == sorted((x * 7 % 31, x) for x in range(count))
    assert size * count <= ordered.stats.bytes_sent < 1.2 * size * count


def test_few_large_groups_are_here_at_a_time() -> None:
    """They are opened in the order in which they go on, and not one of each slot."""
    with store.Store("group_by") as kept:
        waiting = []
        for at in [*range(1, 40, 2), *range(0, 40, 2)]:  # two slots
            block = store.framed((array("Q", [at]), [at], [bytes(2**20)]))
            waiting.append(ordering._Waiting(at, kept.add(block)))
        rounds = [[key for key, _ in found] for found in ordering._rounds(kept, waiting)]
    assert [at for found in rounds for at in found] == list(range(40))
    assert max(map(len, rounds)) <= ordering.OPEN_BYTES // 2**20 + 1


def test_large_groups_of_several_blocks_come_in_order() -> None:
    """None before what is first in a block that is not open yet."""
    with store.Store("group_by") as kept:
        waiting = []
        for at in range(0, 40, 2):
            own = array("Q", [at, at + 21])
            block = store.framed((own, list(own), [bytes(2**20)] * 2))
            waiting.append(ordering._Waiting(at, kept.add(block)))
        found = [key for some in ordering._rounds(kept, waiting) for key, _ in some]
    assert found == sorted([*range(0, 40, 2), *range(21, 61, 2)])
