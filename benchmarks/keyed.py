"""What do operations by key cost, that need all elements to come together?

Words of a hundred files are counted, and tuples in a list are grouped, sorted and left out by key. Beside the
seconds stands the processor time of all processes together, which a busy machine changes least.
"""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import report
from children import ChildError
from engines import Engine
from measuring import LIMIT, Bench, about, check, in_turn, tell
from peers import Peer

KEYS = {"count-50k": 50_000, "count-1M": 1_000_000, "count-zipf": None}  # of words; None for Zipf's law
ROWS = (*KEYS, "group", "sorted", "distinct")
FILES, WORDS, TUPLES, TUPLE_KEYS = 100, 5_000_000, 2_000_000, 200_000
TAKING_PART = ("serial", "parcoll", "remote parcoll", "Pool", "dask.bag", "dask P2P", "pyspark")
PATIENCE = 400.0
LAW = "by Zipf's law"
key = itemgetter(0)


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows' figures."""
    with tempfile.TemporaryDirectory() as folder:
        for row in filter(bench.wants, ROWS):
            count = (WORDS if row in KEYS else TUPLES) // bench.scale
            keys = KEYS.get(row, TUPLE_KEYS) or 0
            if row in KEYS:
                write_words(os.path.join(folder, row), count, keys // bench.scale)
            peers = [name for name in TAKING_PART if name in bench.taking_part | bench.engines]
            if row == "sorted" or (row == "group" and bench.small):
                peers = [
                    name for name in peers if name != "dask.bag"
                ]  # it has no such call; it takes minutes
            found: dict[str, list[tuple[float, float]]] = {peer: [] for peer in peers}
            notes: dict[str, str] = {}
            for run in range(bench.runs):
                for peer in (peer for peer in in_turn(peers, run) if peer not in notes):
                    what = {"row": row, "count": count, "keys": keys // bench.scale, "folder": folder}
                    try:
                        answer = bench.driver(peer).ask(PATIENCE, do="keyed", **what)
                    except (ChildError, TimeoutError) as error:
                        bench.end_driver(peer, 0)
                        if peer.endswith("parcoll"):
                            raise
                        notes[peer] = "failed" if isinstance(error, ChildError) else f"> {PATIENCE:.0f} s"
                        continue
                    check(f"{row}: {peer}", answer)
                    found[peer].append((answer["seconds"], answer["processor"]))
                    if answer["seconds"] > LIMIT and not peer.endswith("parcoll"):
                        notes[peer] = f"over {LIMIT:.0f} s: one run"
                if not bench.small:
                    tell(f"{row}: run {run + 1} of {bench.runs}")
            yield row, {"title": title(row, count), "about": about(bench), "found": found, "notes": notes}


def title(row: str, count: int) -> str:
    """Say what is done."""
    if row in KEYS:
        keys = KEYS[row]
        return f"count {count:,} words, {f'of {keys:,}' if keys else LAW}"
    return f"{row}, {count:,} tuples of {TUPLE_KEYS:,} keys"


def write_words(folder: str, count: int, keys: int) -> None:
    """Write files of words, evenly drawn from so many; of as many as there may be if 0, by Zipf's law."""
    os.makedirs(folder)
    choose = random.Random(7)
    for number in range(FILES):
        drawn = range(count // FILES)
        if keys:
            words = [f"word{choose.randrange(keys)}" for _ in drawn]
        else:
            words = [f"word{int(choose.paretovariate(0.9)) % 10**9}" for _ in drawn]
        with open(os.path.join(folder, f"{number}.txt"), "w", encoding="ascii") as file:
            file.write("\n".join(words))


def run(peer: Peer, row: str, count: int, keys: int, folder: str) -> dict[str, Any]:
    """Time it in a driver. What is right is found out by plain Python, outside of the timing."""
    assert peer.map(abs, list(range(-4, 4)), 1) == [4, 3, 2, 1, 0, 1, 2, 3]
    if row in KEYS:
        within = os.path.join(folder, row)
        source: list[Any] = [os.path.join(within, name) for name in sorted(os.listdir(within))]
    else:
        choose = random.Random(5)
        source = [(f"key{choose.randrange(keys)}", at, "x" * 20) for at in range(count)]
    expected = serial(row, source)
    name = peer.name.removeprefix("remote ")
    ways = {"serial": serial, "parcoll": with_parcoll, "Pool": with_pool, "dask.bag": with_bag}
    call: Callable[..., Any]
    if isinstance(peer, Engine):
        call = peer.operations()["count" if row in KEYS else row]
    else:
        call = partial(ways[name], row)
    with multiprocessing.Pool() if name == "Pool" else memoryview(b"") as pool:
        before, started = processor_seconds(), time.perf_counter()
        answer = call(source, pool) if name == "Pool" else call(source)
        seconds = time.perf_counter() - started
        processor = processor_seconds() - before
    return {"seconds": seconds, "processor": processor, "right": is_right(name, row, answer, expected)}


def processor_seconds() -> float:
    """Return those of this process and of all that it has started."""
    import psutil

    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.Error:  # it has ended meanwhile, and is among those of its parent
            continue
    return total


def is_right(name: str, row: str, answer: Any, expected: Any) -> bool:
    """Compare with plain Python; of the others, the order is not asked for where none is promised."""
    if name in ("serial", "parcoll") or row == "sorted":
        return list(answer) == list(expected) and bool(answer == expected)
    if row == "distinct":
        return {key(one) for one in answer} == {key(one) for one in expected} and len(answer) == len(expected)
    found, right = dict(answer), dict(expected)
    if row == "group":  # nor is that of the elements of a group
        return found.keys() == right.keys() and all(sorted(found[one]) == right[one] for one in right)
    return found == right


def words_of(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()


def counted(path: str) -> Counter[str]:
    return Counter(words_of(path))


def grouped(rows: Sequence[Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    return groups


def firsts(rows: Sequence[Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for row in rows:
        found.setdefault(row[0], row)
    return found


def in_order(rows: Sequence[Any]) -> list[Any]:
    return sorted(rows, key=key)


def serial(row: str, source: Sequence[Any]) -> Any:
    """Do it in one process."""
    if row in KEYS:
        counts: Counter[str] = Counter()
        for path in source:
            counts.update(words_of(path))
        return counts
    if row == "group":
        return list(grouped(source).items())
    return in_order(source) if row == "sorted" else list(firsts(source).values())


def with_parcoll(row: str, source: Sequence[Any]) -> Any:
    """Do it with the call that there is for it."""
    from parcoll import parallel

    if row in KEYS:
        return parallel(source).flatmap(words_of).count_by()
    return list(getattr(parallel(source), {"group": "group_by"}.get(row, row))(key))


def with_pool(row: str, source: Sequence[Any], pool: Any) -> Any:
    """Do it by hand: parts of the elements in the processes, and their answers joined here."""
    if row in KEYS:
        counts: Counter[str] = Counter()
        for some in pool.imap_unordered(counted, source):
            counts.update(some)
        return counts
    size = max(1, len(source) // (4 * (os.cpu_count() or 1)))
    parts = [source[at : at + size] for at in range(0, len(source), size)]
    if row == "sorted":
        return list(heapq.merge(*pool.imap(in_order, parts), key=key))
    if row == "distinct":
        return list(firsts([*itertools.chain.from_iterable(pool.imap(_first_rows, parts))]).values())
    groups: dict[Any, list[Any]] = {}
    for some in pool.imap(grouped, parts):
        for one, rows in some.items():
            groups.setdefault(one, []).extend(rows)
    return list(groups.items())


def _first_rows(rows: Sequence[Any]) -> list[Any]:
    return list(firsts(rows).values())


def with_bag(row: str, source: Sequence[Any]) -> Any:
    """Do it with the call that a bag has for it."""
    import dask.bag

    bag = dask.bag.from_sequence(source)
    if row in KEYS:
        return bag.map(words_of).flatten().frequencies().compute()
    return bag.groupby(key).compute() if row == "group" else bag.distinct(key).compute()


def tables(rows: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    present = [rows[name] for name in ROWS if name in rows]
    peers = [peer for peer in TAKING_PART if any(peer in row["found"] for row in present)]
    parts = []
    for which, what in enumerate(("seconds", "seconds of all processors")):
        lines = [[peer, *[_cell(row, peer, which) for row in present]] for peer in peers]
        parts.append(report.table([f"{what}: minimum / median", *[row["title"] for row in present]], lines))
    return "\n".join(parts)


def _cell(row: Any, peer: str, which: int) -> str:
    times = [run[which] for run in row["found"].get(peer, ())]
    note = row["notes"].get(peer, "")
    if not times:
        return note.split(":")[0]
    return report.two(times) + (" (one run)" if note.startswith("over") else "")
