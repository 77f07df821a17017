"""Threads of the script that move one at a time: where one waits, a seed says which goes on.

They are real threads, and each has its own stack and its own `threading.local`. But all of them are held but
one. That goes on until it waits for a time, for results or for a lock. Then the clock moves until some may go
on, and one of these is chosen. So a number gives the same story again, whatever the machine does.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from virtual import Clock, WaitsForEverError

ENDS = 20.0  # seconds that a thread may take to end, when its story has ended


class AbandonedError(BaseException):
    """Ends a thread of a story in which another one has gone wrong."""


class Member:
    """One of the threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.there: Callable[[], bool] = _yes  # what it waits for
        self.until = math.inf  # when it has waited long enough
        self.held = threading.Lock()  # free when it may go on
        self.held.acquire()
        self.thread: threading.Thread | None = None


def _yes() -> bool:
    return True


def _no() -> bool:
    return False


class Turns:
    """The threads of one story."""

    def __init__(self, clock: Clock, rng: random.Random, tell: Callable[[str], None]) -> None:
        self.now = self.first = Member("the first thread")
        self._clock = clock
        self._rng = rng
        self._tell = tell
        self._members = [self.first]
        self._started: list[Member] = []
        self._failure: BaseException | None = None  # ends all of them
        self._over = False

    def start(self, name: str, work: Callable[[], object]) -> None:
        """Have another thread do some work, when its turn comes."""
        member = Member(name)
        member.thread = threading.Thread(target=self._run, args=(member, work), name=name, daemon=True)
        member.thread.start()
        self._members.append(member)
        self._started.append(member)

    def _run(self, member: Member, work: Callable[[], object]) -> None:
        member.held.acquire()
        try:
            if self._failure is None:
                work()
        except AbandonedError:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        self._members.remove(member)
        if not self._over:
            self._go_on(self.first if self._failure is not None else self._next())

    def wait(self, there: Callable[[], bool], until: float = math.inf) -> None:
        """Let others go on, and events happen, until something is there or the time has come."""
        if self._failure is not None:
            raise AbandonedError
        me = self.now
        me.there, me.until = there, until
        chosen = self._next()
        if chosen is not me:
            self._go_on(chosen)
            me.held.acquire()
        if self._failure is not None:
            raise AbandonedError

    def sleep(self, until: float) -> None:
        """Let others go on, and events happen, until a time."""
        self.wait(_no, until)

    def pause(self) -> None:
        """Let others go on, perhaps."""
        if len(self._members) > 1 and self._rng.random() < 0.5:
            self.wait(_yes)

    def _go_on(self, chosen: Member) -> None:
        self.now = chosen
        chosen.held.release()

    def _next(self) -> Member:
        """Return which one goes on, as soon as one may; the first one, if something has gone wrong."""
        clock, members = self._clock, self._members
        try:
            until = min([one.until for one in members])
            while True:
                ready = [one for one in members if one.until <= clock.now or one.there()]
                if ready:
                    return ready[int(self._rng.random() * len(ready))]
                if clock.next_at() <= until:
                    clock.step()
                elif until < math.inf:
                    clock.now = until
                else:
                    raise WaitsForEverError("nothing will happen any more, and all threads wait")
        except BaseException as error:
            self._failure = error
            return self.first

    def join(self) -> None:
        """Wait for all others."""
        self.wait(lambda: len(self._members) == 1)

    def end(self) -> None:
        """End those that are left, since the story has ended; raise what has gone wrong in one of them."""
        failure, self._over = self._failure, True
        self._failure = failure or AbandonedError()
        self._clock.turns = None
        for member in self._started:
            if member in self._members:
                self._go_on(member)
            assert member.thread is not None
            member.thread.join(ENDS)
            assert not member.thread.is_alive(), f"{member.name} does not end"
        if failure is not None:
            raise failure


class Lock:
    """What stands for a reentrant lock, which one thread may want while another has it."""

    turns: Turns  # of the story that is told

    def __init__(self) -> None:
        self._owner: Member | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True) -> bool:
        """Take it, as soon as it is free."""
        turns = self.turns
        if self._owner is not turns.now:
            if self._owner is not None and not blocking:
                return False
            turns.wait(lambda: self._owner is None)
            self._owner = turns.now
        self._depth += 1
        return True

    def release(self) -> None:
        """Let go of it."""
        assert self._owner is self.turns.now
        self._depth -= 1
        if not self._depth:
            self._owner = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Event:
    """What stands for an event, for which threads wait in virtual time."""

    turns: Turns

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Have those go on that wait for it."""
        self._is_set = True

    def is_set(self) -> bool:
        """Tell whether it has come."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it."""
        clock = self.turns._clock
        self.turns.wait(self.is_set, math.inf if timeout is None else clock.now + timeout)
        return self._is_set


class Threading:
    """The module `threading`, with these."""

    RLock, Event = Lock, Event

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


def changes(turns: Turns, modules: Iterable[Any]) -> Iterator[tuple[Any, str, Any]]:
    """Give what is replaced in these modules: the owner, the name, and by what."""
    Lock.turns = Event.turns = turns
    for module in modules:
        yield module, "threading", Threading()
