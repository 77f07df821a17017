"""Processes beside workers, in virtual time: functions that end their process, or have to be stopped.

What such a process does is parcoll's own (`subworker_main`), and so is what its worker makes of its death
(`isolation`). Whoever dies here has its reply thrown away: what it was at is read at that moment.
"""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from dask_model import running_now
from virtual import Clock

from parcoll.chain import marks
from parcoll.chain.marks import SETTING_UP, Mark, Marks
from parcoll.worker import isolation, subworker_main
from parcoll.worker.subworker import Died, Lent
from parcoll.worker.subworker_main import LoadPartition, _Served

START = 0.3  # seconds that such a process takes to start
KILLED = 0.03  # of the requests, at one of the first calls
EARLY = 6


class EndsError(BaseException):
    """The process has ended: what the function would still do is not done."""


class Chance(random.Random):
    """What decides whether somebody kills such a process: never twice in a row, or a call would fail.

    Nor twice at the same element, whatever was done between.
    """

    spares = False

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.killed_at: set[int] = set()  # elements


class Beside:
    """One process beside a worker."""

    def __init__(self, clock: Clock, chance: Chance) -> None:
        page = memoryview(bytearray(512))
        self.marks = Marks.__new__(Marks)
        self.marks.numbers, self.marks.times = page[:64].cast("q"), page[64:72].cast("d")
        self.marks._text = page[72:272]
        self.marks.begin(SETTING_UP)
        self.token, self.unstarted, self.keeps = "", "", set[str]()
        self.answers = SimpleNamespace(slot=None)
        self.alive, self.unsure = True, False
        self.fate: tuple[Mark, float, bool] | None = None  # what it was at, when, and whether it was stopped
        self._killed_at = 0  # the number of the call
        self._served = _Served(self.marks, SimpleNamespace(failures={}))  # type: ignore[arg-type]
        self._clock = clock
        self._chance = chance
        clock.sleep(START)

    def ask(self, request: Any, *limits: Any) -> Any:
        """Return the reply to a request; Died if it ends on the way."""
        kills = self._chance.random() < KILLED and not self._chance.spares
        self._killed_at = self._chance.randrange(1, EARLY) if kills else 0
        before, running_now.beside = running_now.beside, self
        try:
            reply = self._served.reply(pickle.loads(pickle.dumps(request)))
        finally:
            running_now.beside = before
        if self.fate is not None:
            self.alive = False
            mark, self._clock.local, stopped = self.fate
            self._chance.spares = True
            raise Died(mark, "was killed", stopped)
        self._chance.spares &= isinstance(request, LoadPartition)  # which the next process begins with
        return pickle.loads(pickle.dumps(reply))

    def call(self) -> None:
        """Note a call of a function, at which somebody may kill the process; stop it if it is late."""
        self._killed_at -= 1
        if self.marks.deadline <= self._clock.read():
            self._clock.local = self.marks.deadline
            self.die(stopped=True)
        if self.fate is not None or (self._killed_at == 0 and self._is_first_kill()):
            self.die()

    def _is_first_kill(self) -> bool:
        element, killed = self.marks.read().call.base, self._chance.killed_at
        before = len(killed)
        killed.add(element)
        return len(killed) > before

    def die(self, stopped: bool = False) -> None:
        """End."""
        if self.fate is None:
            self.fate = self.marks.read(), self._clock.read(), stopped
        raise EndsError

    def end(self, after: float = 0.0) -> None:
        """Be ended."""
        self.alive = False


class Pool:
    """The processes beside each worker."""

    def __init__(self, clock: Clock, seed: int) -> None:
        self._clock = clock
        self._chance = Chance(f"{seed} beside workers")

    @contextlib.contextmanager
    def lend(self, owner: str = "") -> Iterator[Lent]:
        """Return one of those of the worker whose task runs."""
        worker = running_now.task[0]
        assert worker is not None
        idle = worker.beside
        lent = Lent(lambda alone, of: idle.pop() if idle else Beside(self._clock, self._chance), owner)
        yield lent
        if lent.current is not None and lent.current.alive:
            idle.append(lent.current)


def called() -> None:
    """Note a call of a function of the story."""
    if running_now.ends is not None:
        raise EndsError
    if running_now.beside is not None:
        running_now.beside.call()


def ended() -> None:
    """End the process that runs a function: the one beside the worker, or the worker."""
    if running_now.beside is not None:
        running_now.beside.die()
    assert running_now.task[1] is not None
    running_now.ends = running_now.task[1].clock.read()
    raise EndsError


def changes(clock: Clock, seed: int) -> Iterator[tuple[Any, str, Any]]:
    """Give what is replaced: the owner, the name, and by what."""
    yield isolation, "pool", Pool(clock, seed)
    yield isolation, "task_key", lambda: None
    yield isolation, "memory_left", lambda: float("inf")
    yield isolation, "memory_limit", lambda: float("inf")
    yield subworker_main, "make_main", lambda script: None
    yield subworker_main, "standin", SimpleNamespace(begin=lambda task: None)
    yield marks, "monotonic", clock.read
