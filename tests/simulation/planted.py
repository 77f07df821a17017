"""Faults that are planted into parcoll, one at a time: the simulation has to find each of them.

Each is a mistake that somebody could make in the protocol, in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from parcoll.calls import looping
from parcoll.calls.rates import Pace, Shares
from parcoll.calls.waiting import Waiting
from parcoll.cluster.link import Link
from parcoll.cluster.receiving import Receiving
from parcoll.cluster.renewing import RenewingEngine
from parcoll.cluster.session import DistributedSession
from parcoll.evaluation.engine import Losses
from parcoll.evaluation.feed import Rest, StreamFeed
from parcoll.evaluation.folding import _Chain, _Tree
from parcoll.evaluation.reader import SliceReader, StreamReader
from parcoll.evaluation.resuming import ResumingFeed, Saver
from parcoll.evaluation.window import Window, _Slot
from parcoll.output import rolling, staging
from parcoll.output.staging import Staging
from parcoll.worker import tasks
from parcoll.worker.outcome import Outcome

Plant = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def replaced(owner: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """Have another attribute in the place of one; `made` gets what it was."""
    own = name in vars(owner)
    before = vars(owner)[name] if own else getattr(owner, name)
    setattr(owner, name, made(before))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:  # it is that of a class above
            delattr(owner, name)


def _any_slot(take: Any) -> Any:
    def taken(self: Window) -> _Slot | None:
        ordered, self._ordered = self._ordered, False
        try:
            return take(self)  # type: ignore[no-any-return]
        finally:
            self._ordered = ordered

    return taken


def _rest_at_the_end(returned: Any) -> Any:
    def return_rest(self: Window, slot: _Slot, outcome: Any) -> None:
        rest = _Slot(rest=self._feed.rest_of(slot.job, outcome))  # type: ignore[arg-type]
        self._slots.append(rest)
        self._rests = deque(other for other in self._slots if other.rest is not None)

    return return_rest


def _rest_one_short(rest_of: Any) -> Any:
    def shorter(self: StreamFeed, job: Any, outcome: Any) -> Rest:
        rest: Rest = rest_of(self, job, outcome)
        if len(rest.elements) > 3:
            rest.elements = rest.elements[1:]
        return rest

    return shorter


def _begun_is_forgotten(rest_of: Any) -> Any:
    def forgetful(self: StreamFeed, job: Any, outcome: Any) -> Rest:
        rest: Rest = rest_of(self, job, outcome)
        job.begun = None
        return rest

    return forgetful


def _lost_jobs_are_forgotten(lose: Any) -> Any:
    def lost(self: Receiving, worker: str, keys: list[str]) -> None:
        for future in [future for future in self.pending if future.key in keys]:
            self.pending.pop(future)

    return lost


def _reported_twice(reported: Any) -> Any:
    def twice(self: Receiving, key: str, outcome: Any) -> None:
        future = self._by_key.get(key)
        job = self.pending.get(future)
        reported(self, key, outcome)
        if outcome is not None and not outcome.early and job is not None and job.lost_workers:
            self.results.put((job, outcome))

    return twice


def _joined_backwards(submit: Any) -> Any:
    def submitted(self: Any, job: Any) -> None:
        job.parts = list(job.parts)[::-1]
        submit(self, job)

    return submitted


def _a_join_takes_one_less(start: Any) -> Any:
    def started(self: _Chain, last: bool = False) -> None:
        if len(self._parts) > 2:
            self._parts.pop()
        start(self, last)

    return started


def _one_element_less(read: Any) -> Any:
    def reads(self: Any, size: int, *settings: Any) -> Any:
        elements = read(self, size, *settings)
        return elements[:-1] if len(elements) > 4 else elements

    return reads


def _sent_again_from_the_start(again: Any) -> Any:
    def send_again(self: DistributedSession, job: Any, found: Any) -> None:
        job.begun = None
        again(self, job, found)

    return send_again


def _lost_is_done(again: Any) -> Any:
    def send_again(self: DistributedSession, job: Any, found: Any) -> None:
        found.append((job, Outcome(read=job.size or 0)))

    return send_again


def _nothing_is_cancelled(close: Any) -> Any:
    def closed(self: Receiving) -> bool:
        self.closed = True
        kept.append(dict(self.pending))
        return False

    return closed


kept: list[Any] = []


def _released_too_early(expecting: Any) -> Any:
    @contextlib.contextmanager
    def expected(self: Receiving, keys: Any, jobs: Any) -> Any:
        with expecting(self, keys, jobs) as futures:
            yield futures
            if len(futures) > 3:
                futures[0].release()

    return expected


def _early_is_the_end(reported: Any) -> Any:
    def report(self: Receiving, key: str, outcome: Any) -> None:
        if outcome is not None:
            outcome.early = False
        reported(self, key, outcome)

    return report


def _new_cluster_gets_only_the_first(begin: Any) -> Any:
    def again(self: Window, error: Any) -> Any:
        for job in sorted(self._by_job, key=lambda job: job.order)[1:]:
            del self._by_job[job]
        return begin(self, error)

    return again


def _complete_though_cut(run: Any) -> Any:
    def ran(*settings: Any, **named: Any) -> Any:
        outcome = run(*settings, **named)
        outcome.complete = True
        return outcome

    return ran


def _a_failure_comes_at_once(take: Any) -> Any:
    def taken(self: Window) -> _Slot | None:
        for position, slot in enumerate(self._slots):
            if slot.outcome is not None and slot.outcome.failure is not None:
                del self._slots[position]
                return slot
        return take(self)  # type: ignore[no-any-return]

    return taken


def _buffer_grows(taken: Any) -> Any:
    def took(self: StreamFeed, elements: int) -> None:
        taken(self, elements * 3 + 5)

    return took


def _the_error_of_the_source_is_lost(take_error: Any) -> Any:
    def take(self: StreamFeed) -> None:
        take_error(self)

    return take


def _a_share_is_given_twice(give: Any) -> Any:
    def given(self: Shares, parts: int) -> Any:
        before = self._given
        share = give(self, parts)
        self._given = before
        return share

    return given


def _the_pace_is_that_of_all(init: Any) -> Any:
    def made(self: Pace, rate: Any, share: Any) -> None:
        init(self, rate, share._replace(parts=1))

    return made


def _late_calls_are_none(await_one: Any) -> Any:
    async def awaited(self: Any, element: Any, given: list[Any]) -> Any:
        try:
            return await await_one(self, element, given)
        except asyncio.CancelledError:
            return element

    return awaited


def _moved_before_it_is_noted(commit: Any) -> Any:
    def committed(self: Staging, moves: list[Any], stale: list[str]) -> None:
        if moves:
            staging.os.replace(os.path.join(self.files, moves[0][0]), moves[0][1])
        commit(self, moves, stale)

    return committed


def _begun_commits_are_dropped(finish: Any) -> Any:
    def finished(path: str) -> None:
        if "commit" in sys._getframe(1).f_code.co_name:
            finish(path)

    return finished


def _not_synced(close: Any) -> Any:
    def closed(self: Any) -> None:
        rolling.os.fsync, before = (lambda _: None), rolling.os.fsync
        try:
            close(self)
        finally:
            rolling.os.fsync = before

    return closed


def _the_failed_is_saved(settled: Any) -> Any:
    def settle(self: ResumingFeed, outcome: Outcome) -> Outcome | None:
        found: Outcome | None = settled(self, outcome)
        return found if outcome.failure is None else outcome

    return settle


def _all_have_the_same_number(init: Any) -> Any:
    def made(self: Link, *settings: Any, **named: Any) -> None:
        init(self, *settings, **named)
        self.numbers = itertools.repeat(0)  # type: ignore[assignment]

    return made


def _always_connected(connected: Any) -> Any:
    return property(lambda self: True)


def _nothing(method: Any) -> Any:
    return lambda self, *arguments: None


def planting(owner: Any, name: str, made: Callable[[Any], Any]) -> Plant:
    """Return what plants one."""
    return lambda: replaced(owner, name, made)


def _each_thread_starts_a_cluster(connected: Any) -> Any:
    def started(self: RenewingEngine) -> Any:
        there = self.current is not None and self.current.link.connected
        return connected(self) if there or self._closed.is_set() else self._connected(0.0)

    return started


def _a_part_is_given_once(drawn: Any) -> Any:
    def given(self: Any) -> Any:
        part = drawn(self)
        self._left = int
        return part

    return given


def _others_are_not_told(close: Any) -> Any:
    return lambda self: self._parts.close()


PLANTED: dict[str, Plant] = {
    "a slot is delivered before its turn": planting(Window, "_take", _any_slot),
    "an error comes before the results before it": planting(Window, "_take", _a_failure_comes_at_once),
    "a rest is put at the end": planting(Window, "_return_rest", _rest_at_the_end),
    "a rest lacks its first element": planting(StreamFeed, "rest_of", _rest_one_short),
    "what was handed back runs there too": planting(StreamFeed, "rest_of", _begun_is_forgotten),
    "after a loss, what was handed back runs again": planting(
        DistributedSession, "_send_again", _sent_again_from_the_start
    ),
    "a lost partition counts as done": planting(DistributedSession, "_send_again", _lost_is_done),
    "lost partitions are forgotten": planting(Receiving, "lose", _lost_jobs_are_forgotten),
    "a second report counts": planting(Receiving, "reported", _reported_twice),
    "what is handed back early ends the task": planting(Receiving, "reported", _early_is_the_end),
    "nothing is cancelled at the end": planting(Receiving, "close", _nothing_is_cancelled),
    "a future is released too early": planting(Receiving, "expecting", _released_too_early),
    "a join forgets its order": planting(_Tree, "_submit", _joined_backwards),
    "a chain of joins forgets its order": planting(_Chain, "_submit", _joined_backwards),
    "a join leaves one out": planting(_Chain, "_start", _a_join_takes_one_less),
    "a slice loses an element": planting(SliceReader, "read", _one_element_less),
    "a stream loses an element": planting(StreamReader, "read", _one_element_less),
    "a new cluster gets the first partition only": planting(
        Window, "_begin_again", _new_cluster_gets_only_the_first
    ),
    "a partition that was cut is said to be whole": planting(tasks, "run", _complete_though_cut),
    "buffersize is no limit": planting(StreamFeed, "taken", _buffer_grows),
    "a share is given twice": planting(Shares, "give", _a_share_is_given_twice),
    "each task has the rate of all": planting(Pace, "__init__", _the_pace_is_that_of_all),
    "a call that is cancelled has a result": planting(Waiting, "await_one", _late_calls_are_none),
    "a file is moved before the commit is noted": planting(Staging, "commit", _moved_before_it_is_noted),
    "a commit that was begun is dropped": planting(staging, "_finish", _begun_commits_are_dropped),
    "files are not synced before they are moved": planting(rolling.Rolling, "_close", _not_synced),
    "what failed is saved as if it were done": planting(ResumingFeed, "_settled", _the_failed_is_saved),
    "what is given is not saved": planting(Saver, "_save", _nothing),
    "what waits to be saved is dropped when the run is left": planting(Saver, "close", _nothing),
    "two evaluations have the same keys": planting(Link, "__init__", _all_have_the_same_number),
    "a scheduler that is lost is not noticed": planting(Link, "connected", _always_connected),
    "what is done again is progress": planting(Losses, "begin_again", _nothing),
    "each thread starts a cluster": planting(RenewingEngine, "connected", _each_thread_starts_a_cluster),
    "what is left of a part is dropped": planting(looping._OneAtATime, "__next__", _a_part_is_given_once),
    "a thread that draws is not told of the end": planting(
        looping._OneAtATime, "close", _others_are_not_told
    ),
    "what the source raised is lost": planting(StreamFeed, "take_error", _the_error_of_the_source_is_lost),
}


def dropped() -> None:
    """Let go of what a planted fault has kept from being cancelled."""
    kept.clear()
