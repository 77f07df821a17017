"""Workers that answer with anything but an outcome: one clear error, or nothing, and never a hang.

What cannot be defended is in docs/security.md: whoever is in the cluster may send pickles.
"""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
from broken import Answer, answering, but, without_fields

from parcoll import Connection, SerializationError, WorkerSetupError, parallel
from parcoll.worker.outcome import Outcome


def packed(value: Any) -> Any:
    from parcoll.wire.payload import Packed

    return Packed.pack(value)


def elsewhere(pid: Any, descriptor: int, *sizes: int) -> Any:
    from parcoll.wire.payload import Shared
    from parcoll.wire.segments import Address, Span

    return Shared(Span(Address(pid, descriptor, bytes(16)), 4096, sizes))


def unloadable_failure(outcome: Any) -> Any:
    from parcoll.wire.exceptions import Failure

    outcome.failure = Failure.of(ValueError("that"), "a note")
    vars(outcome.failure.exception).update(args=5, whole=b"?", exact=False)
    return outcome


class Unloadable:
    def __reduce__(self) -> Any:
        return eval, ("1/0",)


class Exits:
    def __reduce__(self) -> Any:
        return eval, ("exit(3)",)


NO_OUTCOME = "a worker has answered for the partition of .* from element . with .*: it may be broken, or have"
ANSWERS: dict[str, tuple[Answer, str]] = {
    **{
        f"{value!r}": (lambda _, value=value: value, NO_OUTCOME) for value in (None, 5, "x", b"", [1], {1: 2})
    },  # type: ignore[misc]
    "no fields": (without_fields, NO_OUTCOME),
    "read as text": (but(read="1"), NO_OUTCOME),
    "read below 0": (but(read=-1), NO_OUTCOME),
    "read more than there is": (but(read=10**9), NO_OUTCOME),
    "read without end": (but(read=10**400), NO_OUTCOME),
    "complete as None": (but(complete=None), NO_OUTCOME),
    "flows of one": (but(flows=[(1,)]), NO_OUTCOME),
    "flows of texts": (but(flows=[("a", "b")]), NO_OUTCOME),
    "faults of two": (but(faults=[(1, 2)]), NO_OUTCOME),
    "seconds that are no number": (but(seconds=float("nan")), NO_OUTCOME),
    "seconds below 0": (but(step_seconds=[-1.0]), NO_OUTCOME),
    "a step before the first": (but(failed_step=-5), NO_OUTCOME),
    "records as text": (but(records="x"), NO_OUTCOME),
    "a failure as text": (but(failure="x"), NO_OUTCOME),
    "results as a list": (but(results=[1]), NO_OUTCOME),
    "more results than it says": (
        but(produced=3),
        r"the results of the partition at element . are not 3, as the worker says, but \[",
    ),
    "fewer results": (but(produced=10**6), r"are not 1,000,000, as the worker says, but \["),
    "other results": (lambda found: but(results=packed("xx"))(found), "as the worker says, but 'xx'"),
    "results that are no pickle": (
        lambda found: but(results=type(packed(1))(b"nonsense"))(found),
        "came back from the worker but cannot be unpickled here: UnpicklingError",
    ),
    "results that are no bytes": (
        lambda found: but(results=type(packed(1))(5))(found),
        "cannot be unpickled here: TypeError",
    ),
    "results in memory that is not there": (
        lambda found: but(results=elsewhere(1, 10**6, 5))(found),
        "with results that cannot be read: FileNotFoundError",
    ),
    "results in memory with a path for a name": (
        lambda found: but(results=elsewhere("../etc/passwd", 0, 5))(found),
        "with results that cannot be read: ",
    ),
    "no progress": (
        but(read=0, complete=False, results=None, produced=0),
        "without beginning an element, ag",
    ),
    "failed elements that are no pickle": (
        but(failed_elements=b"?"),
        "of failed elements cannot be read: Unp",
    ),
    "other failed elements": (
        but(failed_elements=pickle.dumps([5])),
        r"what a worker says of failed elements cannot be read: they are \[5\]",
    ),
    "an exception in parts that do not fit": (
        unloadable_failure,
        "a worker's exception cannot be put together here: TypeError",
    ),
}


FETCHED = ("None", "no fields", "read below 0", "more results than it says")  # the others take as long


@pytest.mark.parametrize(
    ("name", "reported"), [*((name, True) for name in ANSWERS), *((name, False) for name in FETCHED)]
)
def test_an_answer_that_is_none(cluster: Connection, name: str, reported: bool) -> None:
    answer, message = ANSWERS[name]
    with (
        answering(cluster.engine.client, answer, reported),
        pytest.raises((WorkerSetupError, SerializationError), match=message),
    ):
        list(parallel(range(4), partition_size=1, on_error="skip").map(abs))
    assert list(parallel(range(4), partition_size=1).map(abs)) == [0, 1, 2, 3]


def test_answers_that_cannot_be_loaded(cluster: Connection, capfd: pytest.CaptureFixture[str]) -> None:
    """The report cannot be; nor can the outcome itself, which dask asks the worker for three times."""
    answer = lambda found: but(raised=Unloadable())(found)
    with answering(cluster.engine.client, answer, reported=True), pytest.raises(WorkerSetupError) as raised:
        list(parallel(range(4), partition_size=1).map(abs))
    assert "from element 0 with what cannot be fetched: " in str(raised.value)
    assert list(parallel(range(4), partition_size=1).map(abs)) == [0, 1, 2, 3]


def raise_what_cannot_be_loaded(_: Any) -> Any:
    class Broken(Exception):
        def __reduce__(self) -> Any:
            return eval, ("1/0",)

    raise Broken("a worker's own")


def test_a_task_that_raises(cluster: Connection) -> None:
    """No task of ours does, whatever its functions do; nor is what it raises certain to arrive."""

    def fail(_: Any) -> Any:
        raise ArithmeticError("a worker's own")

    with answering(cluster.engine.client, fail, reported=False), pytest.raises(ArithmeticError) as raised:
        list(parallel(range(4), partition_size=1, on_error="skip").map(abs))
    assert raised.value.__notes__ == ["in the partition of 1 element from element 0"]
    with (
        answering(cluster.engine.client, raise_what_cannot_be_loaded, reported=False),
        pytest.raises(Exception) as other,
    ):
        list(parallel(range(4), partition_size=1, on_error="skip").map(abs))
    assert str(other.value) == 'Broken("a worker\'s own")'
    assert list(parallel(range(4), partition_size=1).map(abs)) == [0, 1, 2, 3]


@pytest.mark.parametrize("joined", [Outcome(produced="x"), Outcome(joined=5)])  # type: ignore[arg-type]
def test_answers_to_a_fold_that_is_one_task(cluster: Connection, joined: Outcome) -> None:
    numbers = parallel(range(4), partition_size=4)
    with (
        answering(cluster.engine.client, but(joined=joined), True),
        pytest.raises(WorkerSetupError, match="a worker has answered for the partition of 4 elements"),
    ):
        numbers.reduce(max)
    assert numbers.reduce(max) == 3


@pytest.mark.parametrize("answer", [lambda _: 5, but(produced="x"), without_fields])
@pytest.mark.parametrize("name", ["run_partition", "join_kept"])
def test_answers_to_a_fold_and_to_what_is_kept(cluster: Connection, answer: Answer, name: str) -> None:
    numbers = parallel(range(4), partition_size=1)
    with answering(cluster.engine.client, answer, True, name):
        with pytest.raises(WorkerSetupError, match="a worker has answered for the "):
            numbers.reduce(max)
        if name == "run_partition":
            with pytest.raises(WorkerSetupError, match="a worker has answered for the partition of"):
                parallel(range(4), partition_size=1).foreach(abs)
    assert numbers.reduce(max) == 3


def test_an_outcome_that_is_kept_in_the_place_of_its_value(cluster: Connection) -> None:
    """The outcome is as it should be, and where a large value is to be fetched there is none."""
    large = [bytes([number]) * 10**6 for number in range(4)]
    with (
        answering(cluster.engine.client, lambda outcome: outcome, True, "join_kept"),
        pytest.raises((WorkerSetupError, SerializationError)),
    ):
        parallel(large, partition_size=1).reduce(max)
    kept = parallel(large[3:]).persist()  # else one task makes and folds all
    with (
        answering(cluster.engine.client, lambda outcome: outcome, True, "join_kept"),
        pytest.raises(WorkerSetupError, match=r"^a worker keeps .*Outcome.* in the place of a result: it"),
    ):
        kept.reduce(max)
    assert parallel(large, partition_size=1).reduce(max) == large[3]


@pytest.fixture(scope="module", autouse=True)
def workers(cluster: Connection) -> None:
    """Wait for both, so that both are broken."""
    cluster.engine.client.wait_for_workers(2, timeout=30)


# Events -----------------------------------------------------------------------------------------------

EVENTS: list[Any] = [
    *(None, 5, "x", b"x", [], [1], ["k"], [[1], b""], [{"a": 1}, None], ["k", 5], ["k", b"nonsense"]),
    *(["k", None, 5], ["k", None, [5]], ["k", None, ["x"]], ["k", None, None], ["k", None, [b"nonsense"]]),
    *(["k", None, [pickle.dumps(5)]], ["k", None, [pickle.dumps(("name", True, None, 5))]]),
    *(["k", pickle.dumps(5)], ["k", pickle.dumps(Exits())], {"key": 1}, ["k", b"x" * 10**7]),
]
LOSSES: list[Any] = [None, 5, [], {}, {"worker": 1}, {"worker": "w", "tasks": "x", "keys": []}]
LOSSES += [{"worker": "w", "tasks": 1, "keys": 5}, {"worker": "w", "tasks": 1, "keys": [["x"], 5, None]}]


def test_events_that_nobody_understands(
    cluster: Connection, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Anybody in a cluster may log events for a topic. Those of no task that is waited for are dropped."""
    client = cluster.engine.client
    (topic,) = [topic for topic in client._event_handlers if topic.removeprefix("parcoll-").isdigit()]
    caplog.set_level(logging.ERROR)
    for event in EVENTS:
        client.log_event(topic, event)
    for event in LOSSES:
        client.log_event("parcoll-lost-workers", event)

    def send_some(x: int) -> int:
        from distributed import get_worker

        for event in EVENTS[:-1]:
            get_worker().log_event(topic, event)
        return x

    assert list(parallel(range(20), partition_size=1).map(send_some)) == list(range(20))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_report_for_another_evaluation(cluster: Connection) -> None:
    """A worker that mistakes keys: an outcome for a task that is done, or that was never sent, is dropped."""
    client = cluster.engine.client
    (topic,) = [topic for topic in client._event_handlers if topic.removeprefix("parcoll-").isdigit()]
    first = parallel(range(4), partition_size=2).map(abs)
    keys: list[str] = []

    def note_key(x: int) -> tuple[int, str]:
        from distributed import get_worker

        return x, str(get_worker().get_current_task())

    keys = [key for _, key in parallel(range(4), partition_size=1).map(note_key)]
    from parcoll.worker.outcome import Outcome

    forged = pickle.dumps(Outcome(read=1, produced=1, results=packed(["forged"])))
    for key in [*keys, keys[0][:-1] + "77", "another-1-2-3-4"]:
        client.log_event(topic, (key, forged))
    assert list(first) == [0, 1, 2, 3]
    assert list(parallel(range(4), partition_size=1).map(abs)) == [0, 1, 2, 3]
