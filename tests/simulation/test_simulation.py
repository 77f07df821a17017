"""Whole evaluations in virtual time on a model of dask: from fresh numbers, and from all that failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from planted import PLANTED, dropped
from simulate import fresh, run
from together import KINDS, Together

from parcoll.chain import apart
from parcoll.cluster.receiving import Lost, Receiving, ReportReader
from parcoll.evaluation.engine import Job
from parcoll.worker.outcome import Outcome

SECONDS = 30.0  # of fresh numbers: with the oldest and the newest Python, a minute
# Numbers that failed once, and why. They tell other stories where `work` has changed since.
FAILED = {
    505: "another evaluation was there when no cluster lasted",
    1959: "calls of an evaluation that was left counted as those of the next one",
    600: "beside a worker, the calls of a partition of one element did not keep to their rate",
    1669: "a partition that had lost seven workers was given up, as it is to be",
    1775: "the model's scheduler went on with tasks that need the result of one that had failed",
    3548: "objects that were to be replaced and could not be removed stayed beside the new ones",
    6503: "a store wrote down what is to be moved, its answer was lost, and what was to be moved was removed",
    5000044: "a task that dask begins again makes its first call early, beside those that a rate bounds",
    8000220: "the model's scheduler took tasks of a client that it had lost",
    10002123: "the model asked a scheduler that had died since for what it still has",
    70002348: "a task with the whole of a rate, sent again after a loss, made its first call at once",
    795988491435: "a fold's checkpoint had elements of a partition that failed beside a worker",
    1300018171: "a step failed in a partition, and the fold was to refuse an element before that",
    1300002535: "slots were shared out at a moment at which there was no worker",
    9144508: "a worker was lost when all was written, and what dask made of that again lay in the bucket",
    1710038492: "elements that a worker handed back ran twice: it was lost before the window had taken them",
    1710008892: "calls of a worker that was given up, and died then, counted up to its death",
    1410002685: "a worker of the model that asked again for what a task needs began an attempt that was over",
    1300005285: "what was read from lost clusters anew each time that the fold around it began again",
    899: "a thread that came with the next part of an iterator dropped what was left of the last one",
    224: "an iterator could not be closed while another thread drew from it",
    3093: "Ctrl-C came while results were written to the checkpoint, and they were dropped",
    50004549: "evaluations within others lost six clusters for each of six that the outer one lost",
    3000046826: "a fold whose first task went to a second cluster went on when that was lost, and waited",
    5000072822: "what a fold kept was lost, and then those who made it again, with elements that end them",
    7000117101: "what foreach() kept was given up by dask, and what needed it was sent again and again",
    3000091912: "Ctrl-C that the model had for a first run came after it, since that was lost before",
}
MOST = 4_000  # numbers until a planted fault has to be found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Have parcoll not tell of the workers that the model loses."""
    logger = logging.getLogger("parcoll")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("seed", FAILED)
def test_what_failed_once(seed: int) -> None:
    story = run(seed)  # which compares
    may_be_lost = story.doomed or story.work.may_be_lost
    assert story.found[0] == story.expected[0] or (may_be_lost and story.found[0] == "is lost")


def test_what_is_logged_keeps_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A handler may keep records. With an error they would keep its frames, and so what the cluster holds."""
    logging.getLogger("parcoll").setLevel(logging.WARNING)
    run(796007245535)  # which compares, and loses its cluster
    assert any("sent again" in record.message for record in caplog.records)


def test_fresh_numbers() -> None:
    count, _ = fresh(SECONDS, int(time.time() * 1000) % 10**12)
    assert count > 0


@pytest.mark.parametrize("seed", [7, 224])  # the second one has several threads
def test_a_number_gives_the_same_story_again(seed: int) -> None:
    story = run(seed)
    assert story.said == run(seed).said
    assert (story.together is not None) == (seed == 224)


@pytest.mark.parametrize("spent", [9.9, 123.4])
def test_what_stories_before_have_taken_out_of_the_time_changes_no_story(
    spent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how differences are rounded: an element that takes half of what is aimed at is alone, or not."""
    said = run(1610073989).said
    monkeypatch.setattr(apart._thread, "seconds", spent)
    assert run(1610073989).said == said


def test_what_goes_wrong_in_a_thread_ends_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()

    def wrong(made: Together) -> None:
        made._start(lambda: made._sleep(1.0) or [][0])
        made._start(lambda: made.turns.wait(lambda: False))

    monkeypatch.setitem(KINDS, "the same iterator", wrong)
    with pytest.raises(IndexError):
        run(224)
    assert threading.active_count() == before


@pytest.mark.parametrize("early", [False, True])
def test_an_outcome_that_comes_at_the_moment_in_which_its_future_does(early: bool) -> None:
    """Two threads meet here, which stories have not: the client's loop, and the one that sends tasks."""
    link = Mock(client=Mock(scheduler_comm=None))
    receiving = Receiving(link, ReportReader(link))
    future = Mock(key="key")
    job, outcome = Job(), Outcome(early=early)
    with contextlib.ExitStack() as sending:
        sending.enter_context(receiving.expecting(["key"], [job])).append(future)

        def number() -> Iterator[int]:  # is asked for when no future was found
            sending.close()
            yield 0

        receiving._numbers = number()  # type: ignore[assignment]
        receiving.reported("key", outcome)
    assert receiving.results.get_nowait() == (job, outcome)
    assert receiving.keys() == (["key"] if early else [])
    assert not receiving._too_soon
    assert bool(receiving._by_key) == early


def test_what_comes_while_its_task_is_sent_is_taken_when_that_is_done() -> None:
    """In stories nothing comes meanwhile. An outcome that is dropped is fetched later, if not early."""
    link = Mock(client=Mock(scheduler_comm=None))
    receiving = Receiving(link, ReportReader(link))
    job, early, outcome = Job(), Outcome(read=1, early=True), Outcome(read=2)
    with receiving.expecting(["key"], [job]) as futures:
        receiving.reported("key", early)
        receiving.reported("key", outcome)
        receiving.lose("tcp://worker", ["other"])
        assert receiving.take(block=False) is None
        futures.append(Mock(key="key"))
    for function, *arguments in [call.args for call in link.client.loop.add_callback.call_args_list]:
        function(*arguments)
    assert [receiving.take(block=False), receiving.take(block=False)] == [(job, early), (job, outcome)]
    assert not receiving.keys()
    assert not receiving._lost_too_soon


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("before", [None, Outcome(read=1, early=True), Outcome(read=2)])
def test_a_worker_that_is_lost_while_its_task_is_sent(before: Outcome | None, sent: bool) -> None:
    """dask runs it again at once, and that may be told before the loss is looked at: it does not count.

    What the task had told as a whole before counts. What it had handed back does not: all runs again.
    """
    link = Mock(client=Mock(scheduler_comm=None, cancel=AsyncMock()))
    reader = ReportReader(link)
    receiving = Receiving(link, reader)
    job, again, key = Job(), Outcome(read=3), Mock(key="key")

    def tell(outcome: Outcome) -> None:
        """Hand on what a worker tells as the reader does: a task tells its outcome once."""
        waiting = reader.waiting.get("key") if outcome.early else reader.waiting.pop("key", None)
        if waiting is not None:
            waiting.reported("key", outcome)

    async def in_the_loop() -> None:
        with receiving.expecting(["key"], [job]) as futures:
            if before is not None:
                tell(before)
            receiving.lose("tcp://worker", ["key"])
            if not sent:
                tell(again)
            futures.append(key)
        if sent:
            tell(again)
        for function, *arguments in [call.args for call in link.client.loop.add_callback.call_args_list]:
            function(*arguments)

    asyncio.run(in_the_loop())
    whole = before is not None and not before.early
    assert receiving.take(block=False) == ((job, before) if whole else (job, Lost.WITH_WORKER))
    assert receiving.take(block=False) is None
    assert job.lost_workers == ([] if whole else ["tcp://worker"])
    assert not receiving.keys()


def test_what_goes_wrong_while_outcomes_are_fetched_ends_the_evaluation() -> None:
    """It would wait for ever, since nobody else fetches them. In stories, dask's client raises nothing."""
    link = Mock(client=Mock(scheduler_comm=None))
    receiving = Receiving(link, ReportReader(link))
    future = Mock(key="key", status="error", exception=AsyncMock(side_effect=OSError("gone")))
    with receiving.expecting(["key"], [Job()]) as futures:
        futures.append(future)

    async def report() -> None:
        receiving.reported("key", None)
        await asyncio.wait(receiving._fetching)

    asyncio.run(report())
    with pytest.raises(OSError, match="gone"):
        receiving.take(block=False)


def first_found(name: str) -> int | None:
    """Return the first number whose story shows a planted fault."""
    for seed in range(MOST):
        try:
            with PLANTED[name]():
                run(seed)
        except Exception:
            return seed
        finally:
            dropped()
    return None


AT_ONCE = (  # the others are found as surely, and take some seconds each
    *("a slot is delivered before its turn", "a rest is put at the end", "a lost partition counts as done"),
    *("a second report counts", "a chain of joins forgets its order", "what the source raised is lost"),
    *("a call that is cancelled has a result", "what failed is saved as if it were done"),
    *("what is given is not saved", "each thread starts a cluster"),
    *("a thread that draws is not told of the end", "each task has the rate of all"),
    "two evaluations have the same keys",
)


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_planted_fault_is_found(name: str) -> None:
    assert first_found(name) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLANTED if name not in AT_ONCE])
def test_any_planted_fault_is_found(name: str) -> None:
    assert first_found(name) is not None
