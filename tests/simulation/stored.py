"""Stories in which objects are put into a store: all of them or none, whatever becomes of requests.

A request may fail before it is done, or behind that, with only its answer lost; it takes time; and the
process that makes it may die at it. What others have there is left alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
from dask_model import running_now
from disk import DiedError
from fsspec.spec import AbstractFileSystem
from virtual import Clock
from written import check_there

from parcoll import ClusterLostError, WorkerLostError
from parcoll.front.into_files import target_at
from parcoll.output import objects

FOREIGN = {"bucket/other.txt": b"1", "bucket/part-x.txt": b"2", "bucket/part-00000.txt.old": b"3"}
URL = "simstore://bucket/part-*.txt"


class RefusedError(OSError):
    """The store does not answer as it should."""


class Store:
    """What is in the store, and what becomes of requests."""

    now: Store  # of the story that is told

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self.objects = dict(FOREIGN)
        self.seconds = rng.choice([0.0, 0.001, 0.3])
        self.fault, self.at = rng.choice(["none", "dies", "fails", "fails often"]), rng.randrange(1, 40)
        self.faults = 0
        self.steps = 0
        self.dead = False
        self.old = [f"old {number}" for number in range(rng.choice([0, 0, 1, 3, 12]))]
        for number, line in enumerate(self.old):
            self.objects[f"bucket/part-{number:05d}.txt"] = f"{line}\n".encode()
        self.rows = rng.choice([1, 2, 5])
        self._rng, self._clock = rng, clock
        self.lost: Callable[[], int] = lambda: 0  # how many workers were
        Store.now = self

    def __str__(self) -> str:
        fault = f"whose request {self.at} {self.fault}, and takes {self.seconds} s"
        return f"a store {fault}, with {len(self.old)} objects"

    def request(self, do: Callable[[], Any]) -> Any:
        """Do what is asked for."""
        self._clock.sleep(self.seconds)
        if self.dead:
            raise DiedError
        self.steps += 1
        dies = self.fault == "dies" and self.steps >= self.at and running_now.task[0] is None
        fails = self.fault == "fails" and self.steps == self.at
        fails |= self.fault == "fails often" and self.steps >= self.at and self._rng.random() < 0.3
        if (dies or fails) and self._rng.random() < 0.5:
            do()
        self.faults += dies or fails
        if dies:
            self.dead = True
            raise DiedError
        if fails:
            raise RefusedError("503: slow down")
        return do()

    def revive(self) -> None:
        """Have another process go on, with which all goes well."""
        self.dead, self.fault = False, "none"

    def there(self) -> list[str] | None:
        """Return the lines of the objects that have numbers; None if there is none."""
        names = sorted(name for name in self.objects if name[12:17].isdigit() and name.endswith(".txt"))
        return (
            [line for name in names for line in self.objects[name].decode().splitlines()] if names else None
        )

    def hidden(self) -> list[str]:
        """Return what nobody is to see."""
        return [name for name in self.objects if "/.parcoll-" in name]


class StoreSystem(AbstractFileSystem):  # type: ignore[misc]
    """The store, for fsspec."""

    protocol = "simstore"
    cachable = False

    def pipe_file(self, path: str, value: bytes, **settings: Any) -> None:
        """Put an object."""
        Store.now.request(lambda: Store.now.objects.update({path: bytes(value)}))

    def cat_file(self, path: str, **settings: Any) -> bytes:
        """Return an object."""
        return Store.now.request(lambda: self._found(path))  # type: ignore[no-any-return]

    def cp_file(self, path: str, other: str, **settings: Any) -> None:
        """Copy an object."""
        Store.now.request(lambda: Store.now.objects.update({other: self._found(path)}))

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self._found(path)
        Store.now.request(lambda: Store.now.objects.pop(path))

    def ls(self, path: str, detail: bool = True, **settings: Any) -> list[Any]:
        """List the objects."""
        assert not detail
        return Store.now.request(lambda: list(Store.now.objects))  # type: ignore[no-any-return]

    def exists(self, path: str, **settings: Any) -> bool:
        """Tell whether there is an object."""
        return Store.now.request(lambda: path in Store.now.objects)  # type: ignore[no-any-return]

    def size(self, path: str) -> int:
        """Return its bytes."""
        return Store.now.request(lambda: len(self._found(path)))  # type: ignore[no-any-return]

    def isdir(self, path: str) -> bool:
        """Tell that there are no folders."""
        return False

    def _found(self, path: str) -> bytes:
        if path not in Store.now.objects:
            raise FileNotFoundError(path)
        return Store.now.objects[path]


fsspec.register_implementation("simstore", StoreSystem, clobber=True)


def all_of(do: Callable[[Any], None], what: Sequence[Any], together: bool = True) -> None:
    """Do something with each, in any order, as threads would: the others are done if one fails."""
    failed: list[Exception] = []
    order = list(what)
    Store.now._rng.shuffle(order)
    for one in order:
        try:
            do(one)
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]


def changes() -> Iterator[tuple[Any, str, Any]]:
    """Give what is replaced: the owner, the name, and by what."""
    yield objects, "REACHED", objects.REACHED | {"simstore"}
    yield objects, "STORES", objects.STORES | {"simstore"}
    yield objects, "_all", all_of


def outcome_of(work: Any, make: Callable[[], Any], expected: tuple[str, Any]) -> tuple[str, Any]:
    """Write, with what happens to requests; look at what is there; write again, and look at that."""
    store: Store = work.store

    def write(overwrite: bool) -> None:
        make().write_text(URL, rows_per_file=store.rows, overwrite=overwrite)

    try:
        ends = "returns"
        write(bool(store.old))
    except DiedError:
        ends = "dies"
    except RefusedError:
        ends = "fails"
    except (ClusterLostError, WorkerLostError):
        ends = "is lost"
    except (ValueError, LookupError):
        ends = "raises"
    # Otherwise tasks that have begun, or that dask begins again for a worker that is lost at the end, may
    # still put something, which the next run removes.
    clean = ends == "returns" and not store.faults and not store.lost()
    assert not clean or not store.hidden(), f"after {ends}, there is {store.hidden()}"
    store._clock.drain()
    store.revive()
    target_at(URL, True, None, "the next run").check()  # which ends what was begun
    there = store.there()
    empty = expected[0] == "returns" and not expected[1] and ends != "raises"
    if not (empty and there in (None, [])):  # an empty object, or none
        check_there(work, f"{store.steps} requests", ends, there, store.old or None, expected)
    assert not store.hidden(), f"after {ends} and another run, there is {store.hidden()}"
    assert {name: store.objects.get(name) for name in FOREIGN} == FOREIGN, "it touched what is others'"
    if expected[0] == "raises":
        return expected
    try:
        write(overwrite=True)
    except ClusterLostError:
        return "is lost", None
    except WorkerLostError:
        return "gives up", None
    return "returns", store.there() or []
