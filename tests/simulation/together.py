"""Stories in which several threads of the script evaluate at the same time, on one simulated cluster.

Beside the first thread, which evaluates as in any story, there are some that do one of `KINDS`. What each of
them gets is compared with plain Python.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import operator
import random
from collections.abc import Callable
from typing import Any

import chains
import oracles
import turns
import work as works

from parcoll import ClusterLostError, Connection, WorkerLostError, parallel
from parcoll.connecting import current

SOON = 10.0  # seconds after its end in which all threads notice that
LOST = ClusterLostError, WorkerLostError
STEPS = (  # of what several threads evaluate: no element fails for good
    *("map(add)", "map(add)", "filter(is_odd)", "flatmap(several)", "flatmap(lazily)", "map(bad, skip)"),
    *("map(flaky, retries=2)", "group_by(mod)", "batched(3)", "scan(add)", "sorted(mod)"),
)


# How a collection is evaluated, with a number, and what plain Python does.
WAYS: dict[str, tuple[Callable[[Any, int], Any], Callable[[list[Any], int], Any]]] = {
    "list": (lambda made, _: list(made), lambda right, _: right),
    "leave": (lambda made, number: None, lambda right, number: right[:number]),
    "take": (lambda made, number: made.take(number), lambda right, number: right[:number]),
    "count": (lambda made, _: made.count(), lambda right, _: len(right)),
    "fold": (
        lambda made, _: made.map(chains.text).fold(chains.joined, "", operator.add),
        lambda right, _: "".join(map(chains.text, right)),
    ),
    "reduce": (
        lambda made, _: made.map(chains.text).reduce(chains.joined, "|"),
        lambda right, _: "".join(["|", *map(chains.text, right)]),
    ),
}


class Together:
    """The other threads of a story."""

    def __init__(self, story: Any, chance: random.Random) -> None:
        self.turns = turns.Turns(story.clock, random.Random(f"{story.seed} turns"), story.tell)
        self.kind = chance.choice(list(KINDS))
        self._story = story
        self._chance = chance
        self._compared: list[Callable[[], None]] = []  # when all threads have ended
        self.count = 0  # of threads
        self.closed = False  # a connection that was made last, for some time
        self.inner: Connection | None = None

    def begin(self) -> None:
        """Start them."""
        self._story.clock.turns = self.turns
        KINDS[self.kind](self)

    def changes(self, *modules: Any) -> Any:
        """Give what is replaced, so that what waits for another thread does so in turns."""
        return turns.changes(self.turns, modules)

    def end(self) -> None:
        """Wait for them, and compare."""
        self.turns.join()
        for compared in self._compared:
            compared()

    def _start(self, work: Callable[[], object]) -> None:
        self.count += 1
        name, tell = f"thread {self.count}", self._story.tell

        def told() -> None:
            tell(f"{name} begins")
            work()
            tell(f"{name} ends")

        self.turns.start(name, told)

    def _sleep(self, *seconds: float) -> None:
        """Let some time pass."""
        self._story.clock.sleep(self._chance.choice(seconds) * self._chance.random())

    def _chain(self) -> tuple[Any, list[Any]]:
        """Return a collection that can be evaluated again and again, and its results."""
        chance = self._chance
        count = chance.choice([1, 3, 7, 12, 30])
        source: Any = list(range(count)) if chance.random() < 0.5 else lambda: iter(range(count))
        made: Any = parallel(source, partition_size=chance.choice([1, 2, 3, 10, "auto"]))
        plain: Any = iter(range(count))
        for step in chance.choices(STEPS, k=chance.choice([1, 1, 2])):
            made, plain = chains.ALL[step][0](made), chains.ALL[step][1](plain)
        if chance.random() < 0.5:
            made, plain = made.map(chains.twin), map(chains.twin, plain)
        return made, list(plain)

    def _excused(self, on: Any = None) -> bool:
        """Tell whether an evaluation may be lost: its connection was closed, or no worker lasts."""
        story = self._story
        lost = sum(cluster.lost for cluster in story.clusters)
        return story.doomed or lost > oracles.ALLOWED_FAILURES or (self.closed and on in (None, self.inner))

    # What threads do.

    def others(self) -> None:
        """Each evaluates a chain of its own, with all that an evaluation may end with."""
        for number in range(self._chance.choice([1, 1, 2])):
            costs = chains.now().costs
            work = works.Work.of(hash_of(self._story.seed, number), alone=False)
            chains.now().costs = costs
            expected = works.expected(work)

            def evaluate(work: works.Work = work, expected: Any = expected) -> None:
                found = works.found(work)
                self._story.tell(f"it {found[0]} {found[1]!r}"[:300])
                self._compared.append(lambda: oracles.check(oracles.Part(self._story, work), expected, found))

            self._start(evaluate)

    def same_collection(self) -> None:
        """They evaluate the same collection, each in its own way; some leave their evaluation early."""
        made, right = self._chain()
        for _ in range(self._chance.choice([2, 2, 3])):
            self._start(functools.partial(self._evaluate, made, right, self._chance.choice([1, 1, 1, 2])))

    def _evaluate(self, made: Any, right: list[Any], times: int) -> None:
        for _ in range(times):
            way, number = self._chance.choice(list(WAYS)), self._chance.randrange(9)
            self._sleep(0.0, 0.01, 1.0)
            on = current.current_connection()
            try:
                found = self._left(made, number) if way == "leave" else WAYS[way][0](made, number)
            except LOST:
                assert self._excused(on), "an evaluation was lost, and its cluster could be replaced"
                return
            expected = WAYS[way][1](right, number)
            assert found == expected, f"{way} {number} gives {found}, and not {expected}"

    def _left(self, made: Any, number: int) -> list[Any]:
        results = iter(made)
        found = []
        for x in itertools.islice(results, number):
            found.append(x)
            self._sleep(0.0, 0.0, 0.1)
        results.close()
        return found

    def same_iterator(self) -> None:
        """They draw from the same iterator, and one of them may close it while others draw."""
        made, right = self._chain()
        results = iter(made)
        drawn: list[Any] = []
        complete, clock, ends_by = [True], self._story.clock, [math.inf]

        def draw() -> None:
            try:
                for x in results:
                    drawn.append(x)
                    self._sleep(0.0, 0.0, 0.01, 0.3)
            except LOST:
                assert self._excused()
                complete[0] = False
            assert clock.now < ends_by[0], f"the iterator was closed {clock.now - ends_by[0] + SOON} s ago"

        def close() -> None:
            self._sleep(0.1, 1.0, 10.0)
            self._story.tell("the iterator is closed")
            now, complete[0], ends_by[0] = clock.now, False, clock.now + SOON
            results.close()  # type: ignore[attr-defined]
            assert list(results) == [], "a closed iterator has given results"
            assert clock.now == now, "it waits for another thread to be closed"

        for _ in range(self._chance.choice([2, 2, 3])):
            self._start(draw)
        if self._chance.random() < 0.5:
            self._start(close)

        def compare() -> None:
            # Each result goes to one of them. Which one is behind may be, not which ones were given.
            expected = right if complete[0] else right[: len(drawn)]
            assert collections.Counter(drawn) == collections.Counter(expected), f"{drawn}, of {right}"

        self._compared.append(compare)

    def closing(self) -> None:
        """Another connection is made, and closed, while some evaluate on it and others on the first one."""
        made, right = self._chain()
        for _ in range(self._chance.choice([1, 2])):
            self._start(functools.partial(self._evaluate, made, right, 2))

        def connect() -> None:
            self._sleep(0.0, 0.1, 2.0)
            engine = self._story.engine(ends=True)
            engine.connected()
            self.inner = Connection(engine)
            self._story.tell("another connection is made")
            self._start(close)
            self._evaluate(made, right, 1)

        def close() -> None:
            self._sleep(0.1, 2.0, 20.0)
            self._story.tell("the other connection is closed")
            self.closed = True
            assert self.inner is not None
            self.inner.close()

        self._start(connect)


KINDS: dict[str, Callable[[Together], None]] = {
    "others": Together.others,
    "the same collection": Together.same_collection,
    "the same iterator": Together.same_iterator,
    "closing": Together.closing,
}


def hash_of(seed: int, number: int) -> int:
    """Return the number of another work."""
    return random.Random(f"{seed} together {number}").randrange(10**9)
