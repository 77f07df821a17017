"""Oracles: what a story has to end with, whatever happened in it."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import calling
import chains
from dask_model import ALLOWED_FAILURES

from parcoll.calls.rates import Share, Shares
from parcoll.checkpoint.pieces import Checkpoint
from parcoll.cluster import session
from parcoll.evaluation.engine import MAX_CLUSTERS_LOST, Job
from parcoll.evaluation.sizing import Fixed
from parcoll.watch.recorder import Recorder

# Clusters that may be started for one that a call counts as lost: one may die before anything is sent to it.
STARTED = 2
SENDING = 10.0  # seconds: one element may take twice as long


class Part:
    """A story as one of its threads sees it, which has its own work."""

    def __init__(self, story: Any, work: Any) -> None:
        self.work = work
        self._story = story

    def __getattr__(self, name: str) -> Any:
        return getattr(self._story, name)


class Progress:
    """How many clusters were started one after the other, none of which got its call any further.

    An outcome is progress. Of a call that has begun again from the source it is none, unless it is saved: as
    much had been done before.
    """

    def __init__(self) -> None:
        self.idle = self.most_idle = 0
        self._begun_again = False

    def started(self) -> None:
        """Note that another cluster is started."""
        self.idle += 1
        self.most_idle = max(self.most_idle, self.idle)

    def _begins(self) -> None:
        self.idle, self._begun_again = 0, False

    def _came(self) -> None:
        if not self._begun_again:
            self.idle = 0

    def _begins_again(self) -> None:
        self._begun_again = True

    def _saved(self) -> None:
        self.idle = 0

    def changes(self) -> Iterator[tuple[Any, str, Any]]:
        """Give what is replaced to see this: the owner, the name, and by what."""
        yield Recorder, "begin", _noted(Recorder.begin, self._begins)
        yield Recorder, "add", _noted(Recorder.add, self._came)
        yield Recorder, "forget", _noted(Recorder.forget, self._begins_again)
        yield Checkpoint, "save", _noted(Checkpoint.save, self._saved)


def _noted(method: Any, note: Any) -> Any:
    def noted(self: Any, *arguments: Any) -> Any:
        note()
        return method(self, *arguments)

    return noted


def sending() -> Iterator[tuple[Any, str, Any]]:
    """Give what is replaced to see what is sent.

    Partitions have elements, and are not cut short where they may run again later; no limit is passed.
    """
    submit, give = session.DistributedSession.submit, Shares.give

    def submitted(self: session.DistributedSession, jobs: Sequence[Job]) -> None:
        empty = [job.place for job in jobs if job.size == 0]
        assert not empty, f"partitions without an element are sent, at {empty}"
        cut = [job.place for job in jobs if job.budget is not None and self._keeps(job)]
        assert not cut, f"results are kept of what may end elsewhere when it runs again, at {cut}"
        submit(self, jobs)

    def given(self: Shares, parts: int) -> Share:
        share = give(self, parts)
        assert self._given <= 1, f"tasks have {self._given} of what their calls are limited to"
        return share

    yield session.DistributedSession, "submit", submitted
    yield Shares, "give", given


def check(story: Any, expected: tuple[str, Any], found: tuple[str, Any]) -> None:
    """Compare what came with what plain Python gives."""
    work = story.work
    together = story.together
    calls = 1 + (story.other is not None) + (0 if together is None else together.count)
    most = calls * STARTED * (MAX_CLUSTERS_LOST + 1)
    idle = story.progress.most_idle
    again = story.saved.again
    assert not again, f"the elements {again} had given their results to the checkpoint, and ran again"
    assert idle <= most, f"{idle} clusters were tried in a row, and nothing came of them"
    closed = together is not None and together.closed
    if found[0] == "is lost" and (work.may_be_lost or story.doomed or closed):
        gone = any(not cluster.alive or cluster.client is None for cluster in story.clusters)
        # What is kept of a partition dask makes again by itself, and gives it up with its fourth worker.
        assert gone or any(cluster.lost > ALLOWED_FAILURES for cluster in story.clusters)
        return
    if found[0] == "gives up":  # a partition, since it has lost so many workers
        lost = sum(cluster.lost for cluster in story.clusters)
        # What is kept of a partition is given up sooner.
        kept = work.end in ("reduce", "foreach") or "fold" in work.end
        most = ALLOWED_FAILURES if kept else session.MAX_WORKERS_LOST
        assert lost > most, "it was given up too early"
        return
    if not work.ordered and expected[0] == found[0] == "returns" and work.end != "count":
        expected = "returns", collections.Counter(expected[1])  # type: ignore[assignment]
        found = "returns", collections.Counter(found[1])
    any_order = not work.ordered or work.end == "count"  # whose first error is the one that comes first
    if any_order and expected[0] == found[0] == "raises":
        return
    assert found == expected, f"{found} instead of {expected}"
    if expected[0] == "raises" and work.end in ("list", "leave", "slow consumer"):
        before: list[Any] = []
        with contextlib.suppress(ValueError, LookupError):
            before.extend(work.plain())
        assert work.results == before, f"{work.results} came before the error, instead of {before}"
    check_calls(story)
    check_window(story)
    check_held(story)
    check_accounts(story)
    size = work.settings.get("buffersize")
    if size is not None and work.end in ("leave", "slow consumer") and not work.steps_multiply:
        assert work.most_unread <= size + 1, f"{work.most_unread} were read and not taken"


def check_held(story: Any) -> None:
    """Compare how many results were kept for the client with its window, and what it releases at once."""
    work = story.work
    size = work.settings.get("partition_size")
    plain = work.end in ("list", "take", "count", "leave", "slow consumer")
    alone = story.other is None and story.together is None
    if size is None or not (plain and alone) or not chains.OPERATIONS.isdisjoint(work.steps):
        return
    window = Fixed(size).window(max(cluster.most_workers for cluster in story.clusters) * story.threads)
    held = max(cluster.most_held for cluster in story.clusters)
    assert held <= window + session.RELEASED, f"{held} results were held, at a window of {window}"


def check_accounts(story: Any) -> None:
    """Compare what entered each step with what left it, or was left out there; and what was waited for."""
    stats = story.work.stats
    if stats is None or not chains.OPERATIONS.isdisjoint(story.work.steps):
        return
    waits = vars(stats.waited).values()
    assert min(waits) >= 0, f"the evaluation is said to have waited {stats.waited}"
    if len(story.clusters) == 1 and story.other is None and story.together is None:
        left = stats.seconds - sum(waits)  # beside it, time passes where tasks are sent alone
        assert -0.01 < left < SENDING, f"{stats.waited}, of {stats.seconds} seconds"
    assert stats.elements_in == story.work.count, f"{stats.elements_in} elements were run"
    entered = stats.elements_in
    for step in stats.steps:
        assert step.entered == entered, f"{step.entered} entered {step}, of {entered}"
        assert step.added == 0 or not step.label.startswith("map("), f"{step} has not one for each"
        entered = step.left
    assert entered == len(story.work.results), f"{entered} left the last step"


def check_window(story: Any) -> None:
    """Compare how much was read ahead with the window: that of all workers that there were at a time."""
    work = story.work
    size = work.settings.get("partition_size")
    if size is None or work.end not in ("leave", "slow consumer") or work.steps_multiply:
        return
    most = max(cluster.most_workers for cluster in story.clusters)
    window = Fixed(size).window(most * story.threads)
    # Beside the window there is the partition that the consumer is taking.
    assert work.most_unread <= (window + 1) * size, f"{work.most_unread} were read, and not taken"


def check_calls(story: Any) -> None:
    """Compare the calls that wait with what their steps allow."""
    for step in story.work.steps:
        if step not in chains.WAITING or story.together is not None:  # other chains make the same calls
            continue
        name = step.partition("(")[2].partition(",")[0].rstrip(")")
        if "concurrency" in step and story.work.steps.count(step) == 1:
            most = calling.most_at_once(name)
            assert most <= chains.AT_ONCE, f"{most} calls of {name} at a time"
        if "rate" in step:
            count, seconds = chains.RATE
            least = calling.closest(name, count)
            assert least >= seconds - 1e-6, f"{count + 1} calls of {name} in {least} s"
