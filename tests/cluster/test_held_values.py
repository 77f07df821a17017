"""A value that a worker keeps as an object is used once; for whoever wants it again it is made again."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from bare import bare_cluster

from parcoll import Connection, connect, parallel
from parcoll.calls.held import Held, Lacking, UnsentError, UsedError, beside, is_own
from parcoll.chain.place import Place
from parcoll.evaluation.engine import Job, Join
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed
from parcoll.worker.fold import Fold, join
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program

LARGE = 70_000  # bytes
NOWHERE = "tls://127.0.0.1:1"


def append(values: list[bytes], value: bytes) -> list[bytes]:
    values.append(value)
    return values


@pytest.fixture(scope="module", params=["local", "bare"])
def connected(request: Any, leaves_no_trace: None, tmp_path_factory: Any) -> Iterator[Connection]:
    """Give a local cluster, and one whose workers have dask and nothing else."""
    if request.param == "local":
        with connect(n_workers=2) as connection:
            yield connection
        return
    with bare_cluster(tmp_path_factory.mktemp("bare"), 2) as bare:
        with connect(bare.address) as connection:
            yield connection
        for process in bare._started:  # dask's workers that have exchanged results take 10 s to end
            process.kill()


class Folded:
    """A reduce of parts that are on workers, join by join."""

    def __init__(self, connection: Connection) -> None:
        self.engine = connection.engine
        assert list(parallel([1])) == [1]
        self.sessions = [
            self.engine.open(Program(()), "parts", keep=True),
            self.engine.open(
                Program((), Fold(append, "reduce(append)", Packed.pack([]))), "reduce", keep=True
            ),
        ]

    def done(self, job: Job) -> Any:
        session = self.sessions[isinstance(job, Join)]
        session.submit([job])
        while not (ended := session.completed(True)):
            pass
        [(same, outcome)] = ended
        assert same is job
        if outcome.failure is not None:
            raise outcome.failure.rebuild()
        return outcome

    def part(self, number: int) -> Any:
        elements = self.engine.pack([bytes([number]) * LARGE], lasting=True)
        job = Job(elements=elements, place=Place(number, number))
        self.done(job)
        return job.handle

    def joined(self, previous: Any, parts: list[Any], at: str, stays: bool) -> tuple[Any, str]:
        job = Join(previous=previous, parts=parts, at=at, stays=stays)
        outcome = self.done(job)
        return job.handle, outcome.held_at

    def close(self) -> None:
        for session in self.sessions:
            session.close()


@pytest.fixture
def folded(connected: Connection) -> Iterator[Folded]:
    found = Folded(connected)
    yield found
    found.close()


@pytest.mark.parametrize("where", ["there", "elsewhere"])
def test_a_value_that_was_used_is_made_again(folded: Folded, where: str) -> None:
    """As for a join that dask has run, and that is sent again since its first worker was lost.

    What its values were made of was used too, so all of it is made again. Elsewhere there is only the word
    that the value was used.
    """
    parts = [folded.part(number) for number in range(5)]
    made: list[tuple[Any, str]] = [(None, "")]
    for part in parts:
        made.append(folded.joined(made[-1][0], [part], made[-1][1], stays=True))
    assert all(at for _, at in made[2:]), "each but the first is an object only"
    for count in (4, 3, 3):
        handle, at = made[count]
        if where == "elsewhere":
            workers = folded.engine.client.scheduler_info(n_workers=-1)["workers"]
            at = next(worker for worker in workers if worker != at)
        again, _ = folded.joined(handle, parts[:1], at, stays=False)
        content = again.fetch().content
        assert [value[0] for value in content.load()[0]] == [*range(count), 0]
    last, _ = folded.joined(made[-1][0], [], NOWHERE, stays=False)
    assert [value[0] for value in last.fetch().content.load()[0]] == [0, 1, 2, 3, 4]


def test_a_value_that_is_fetched_or_moves_is_packed_as_it_is(folded: Folded) -> None:
    value: Any = None
    at = ""
    for number in range(4):
        value, at = folded.joined(value, [folded.part(number)], at, stays=True)
    assert at
    assert len(value.fetch().content.load()[0]) == 4
    workers = folded.engine.client.scheduler_info(n_workers=-1)["workers"]
    other = next(worker for worker in workers if worker != at)
    value, at = folded.joined(value, [folded.part(4)], other, stays=True)
    value, _ = folded.joined(value, [], at, stays=False)
    assert [found[0] for found in value.fetch().content.load()[0]] == [0, 1, 2, 3, 4]


def test_an_evaluation_on_such_a_cluster(connected: Connection) -> None:
    numbers = parallel(range(40), partition_size=1).map(lambda x: bytes([x]) * LARGE)
    expected = [bytes([x]) * LARGE for x in range(40)]
    assert numbers.reduce(append, []) == expected
    assert numbers.fold(append, [], lambda left, right: left + right) == expected


# --- the value itself ----------------------------------------------------------------------------


class Home:
    key, address = "key", "address"

    def __init__(self) -> None:
        self.dropped = 0

    def drop(self, in_use: bool = False) -> None:
        self.dropped += 1


def test_a_packed_value_gives_its_object_once_and_then_copies_of_what_it_was() -> None:
    value = [["x" * LARGE]]
    held = beside(value, Packed.pack(value))
    assert isinstance(held, Held)
    given = held.load()
    assert given is value
    given[0].append("y")
    copies = [held.load(), pickle.loads(pickle.dumps(held, 5)).load()]
    assert copies == [[["x" * LARGE]]] * 2
    assert type(pickle.loads(pickle.dumps(held, 5))) is Packed


def test_a_value_that_is_an_object_only_is_packed_where_it_travels_and_is_gone_when_it_was_used() -> None:
    home = Home()
    held = Held([[1]], pack=Packed.pack, home=home)
    assert pickle.loads(pickle.dumps(held, 5)).load() == [[1]]
    held.load()[0].append(2)
    assert held.load() == [[1]], "it was packed before its use"
    held = Held([[1]], pack=Packed.pack, home=home)
    held.load()
    with pytest.raises(UsedError):
        held.load()
    assert not home.dropped
    gone = pickle.loads(pickle.dumps(held, 5))
    assert home.dropped == 1
    for lacking in (gone, pickle.loads(pickle.dumps(gone, 5))):
        with pytest.raises(UsedError) as caught:
            lacking.load()
        assert caught.value.key == "key"


def test_what_cannot_be_packed_is_told_where_it_comes_to() -> None:
    failure = Failure.of(ValueError("no"), "in a test")
    held = Held([threading.Lock()], pack=lambda value: failure, home=Home())
    arrived = pickle.loads(pickle.dumps(held, 5))
    assert isinstance(arrived, Lacking)
    with pytest.raises(UnsentError) as caught:
        arrived.load()
    assert str(caught.value.failure.rebuild()) == "no"
    fold = Fold(append, "reduce(append)")
    for previous, parts in ((arrived, []), (None, [arrived])):
        handle = None if previous is None else Kept(Outcome(), previous)
        joined = join(fold, handle, [Kept(Outcome(), part) for part in parts], 0, Packed.pack)
        assert joined.outcome.failure is caught.value.failure
    assert len(held.load()) == 1, "here it is still of use"


def test_only_one_of_several_threads_gets_the_object() -> None:
    for _ in range(200):
        held = Held([[1]], pack=Packed.pack, home=Home())
        found: list[Any] = []
        barrier = threading.Barrier(3)

        def use(held: Held = held, found: list[Any] = found, barrier: Any = barrier) -> None:
            barrier.wait()
            try:
                found.append(held.load())
            except UsedError:
                found.append(None)

        def send(held: Held = held, found: list[Any] = found, barrier: Any = barrier) -> None:
            barrier.wait()
            pickle.dumps(held, 5)

        threads = [threading.Thread(target=target) for target in (use, use, send)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, second = found
        assert first is not second
        assert first == [[1]] or second == [[1]]


def test_an_object_that_others_refer_to_is_not_kept() -> None:
    shared = ["x" * LARGE]
    value = [shared]
    packed = Packed.pack(value)
    assert not is_own(value)
    assert beside(value, packed) is packed
    del shared
    assert is_own(value)


def test_objects_beside_packed_values_are_few() -> None:
    """dask.sizeof says so: what a worker has."""
    import dask.sizeof

    class Heavy(list[str]):
        pass

    dask.sizeof.sizeof.register(Heavy, lambda _: 60 * 2**20)
    values = [[Heavy(["x" * LARGE])] for _ in range(4)]
    found = [beside(value, Packed.pack(value)) for value in values]
    assert [isinstance(one, Held) for one in found] == [True, True, False, False]
    found[0].load()
    value = [Heavy(["x" * LARGE])]
    assert isinstance(beside(value, Packed.pack(value)), Held)
