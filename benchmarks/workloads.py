"""What is computed: functions, their input, and what tells a right answer from a wrong one.

Each process builds its own workload from a few numbers, so that nobody gets it from another.
This module imports the standard library only, since every worker of every peer imports it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

WORD = re.compile(r"[^\W\d_]+")
SLOW_EVERY, SLOW_TIMES = 97, 40


@dataclass(frozen=True)
class Workload:
    """One function mapped over one source."""

    title: str
    func: Callable[[Any], Any]
    source: list[Any]
    is_right: Callable[[Any], bool]
    # Three a person might try: about a hundred chunks for each worker, ten, and one or two.
    chunk_sizes: tuple[int, int, int]
    cost: Callable[[Any], float] = field(default=lambda element: 1.0)
    # Joins a result to the total, where the answer is a total and not the list of results.
    merge: Callable[[Any, Any], Any] | None = None
    steps: int = 1  # how many times the function is mapped, one after the other
    stream: bool = False  # the source is given as a generator

    @property
    def given(self) -> Any:
        """What is mapped over."""
        return (element for element in self.source) if self.stream else self.source


def increment(x: int) -> int:
    return x + 1


def double(array: Any) -> Any:
    return array * 2


def spin(loops: int, x: int) -> int:
    """Return x + loops, the slow way.

    Counted, not timed: a wait for the clock would look just as parallel on one busy core.
    """
    for _ in range(loops):
        x += 1
    return x


def spin_unevenly(loops: int, x: int) -> int:
    return spin(loops * SLOW_TIMES if is_slow(x) else loops, x)


def is_slow(x: int) -> bool:
    return x % SLOW_EVERY == SLOW_EVERY - 1


def count_words(path: str) -> Counter[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return Counter(WORD.findall(file.read().lower()))


def add_counts(total: Counter[str], counts: Counter[str]) -> Counter[str]:
    """Add in place: `total + counts` would copy the whole vocabulary for every file."""
    total.update(counts)
    return total


def build_increment(scale: int = 1, count: int = 1_000_000) -> Workload:
    count //= scale
    want = list(range(1, count + 1))
    sizes = (max(1, count // 1_000), max(1, count // 100), max(1, count // 20))
    return Workload(f"{count:,} x `x + 1`", increment, list(range(count)), want.__eq__, sizes)


def build_steps(scale: int = 1, steps: int = 10) -> Workload:
    count = 1_000_000 // scale
    want = list(range(steps, count + steps))
    title = f"{count:,} x {steps} steps `x + 1`"
    return Workload(title, increment, list(range(count)), want.__eq__, (1, 1, 1), steps=steps)


def build_short(scale: int = 1, speed: float = 0) -> Workload:
    return build_spin(200_000 // scale, 20, speed, (100, 1_000, 10_000))


def build_long(scale: int = 1, speed: float = 0) -> Workload:
    return build_spin(800 // scale, 5_000, speed, (1, 8, 50))


def build_spin(count: int, microseconds: int, speed: float, sizes: tuple[int, int, int]) -> Workload:
    loops = max(1, round(speed * microseconds * 1e-6))
    want = list(range(loops, loops + count))
    func = functools.partial(spin, loops)
    work = f"{microseconds} µs" if microseconds < 1_000 else f"{microseconds // 1_000} ms"
    return Workload(f"{count:,} x {work}", func, list(range(count)), want.__eq__, sizes)


def build_job(
    scale: int = 1, speed: float = 0, length: float = 0.4, milliseconds: int = 1, stream: bool = False
) -> Workload:
    """A job of so many seconds for one process, of elements that all cost the same."""
    count = max(1, round(length * 1000 / milliseconds / scale))
    built = build_spin(count, 1000 * milliseconds, speed, (1, max(1, count // 16), max(1, count // 4)))
    of = "generator" if stream else "list"
    return dataclasses.replace(built, title=f"{length:g} s of {milliseconds} ms, {of}", stream=stream)


def build_skewed(scale: int = 1, speed: float = 0) -> Workload:
    """600 elements of 6 ms, one in 97 of 240 ms: 5 s of work for one process, a quarter of it in six."""
    count = max(SLOW_EVERY, 600 // scale)
    loops = max(1, round(speed * 6e-3 / scale))
    want = [x + (loops * SLOW_TIMES if is_slow(x) else loops) for x in range(count)]
    return Workload(
        f"{count:,} x 6 ms, one in {SLOW_EVERY} x {SLOW_TIMES}",
        functools.partial(spin_unevenly, loops),
        list(range(count)),
        want.__eq__,
        (1, 4, 20),
        cost=lambda x: SLOW_TIMES if is_slow(x) else 1,
    )


def build_arrays(scale: int = 1) -> Workload:
    import numpy as np

    count = max(8, 300 // scale)
    source = [np.full(131_072, float(number)) for number in range(count)]

    def is_right(answer: list[Any]) -> bool:
        return len(answer) == count and all(map(np.array_equal, answer, map(double, source)))

    return Workload(f"{count:,} arrays of 1 MiB, `a * 2`", double, source, is_right, (1, 4, 16))


def build_words(scale: int = 1, digest: str = "") -> Workload:
    source = word_paths(max(15, 1_500 // scale))
    return Workload(
        f"words of {len(source):,} files",
        count_words,
        source,
        lambda answer: digest_of(answer) == digest,
        (1, 10, 100),
        cost=lambda path: Path(path).stat().st_size,
        merge=add_counts,
    )


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "increment": build_increment,
    "steps": build_steps,
    "short": build_short,
    "long": build_long,
    "job": build_job,
    "skewed": build_skewed,
    "words": build_words,
    "arrays": build_arrays,
}


def word_paths(count: int) -> list[str]:
    """Return that many Python files: the standard library's by name, then the installed packages'."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    own = (path for path in sorted(stdlib.rglob("*.py")) if "site-packages" not in path.parts)
    packages = (path for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")))
    return [str(path) for source in (own, packages) for path in islice(source, count)][:count]


def digest_of(counts: Counter[str]) -> str:
    return hashlib.sha256(repr(sorted(counts.items())).encode()).hexdigest()


def words_digest(scale: int) -> str:
    """Return the right answer of `words`, counted by one process; reads the files into the page cache too."""
    return digest_of(functools.reduce(add_counts, map(count_words, build_words(scale).source), Counter()))


def loops_in_a_second() -> float:
    """Return how many loops `spin` does in a second on this machine, undisturbed."""
    probe = 100_000
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        spin(probe, 0)
        best = min(best, time.perf_counter() - started)
    return probe / best
