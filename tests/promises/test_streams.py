"""Operations that need their elements in order: `itertools`, on chains."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from scripts import append, lines

from parcoll import Connection, ParallelGen, SourceConsumedError, parallel, read_text
from parcoll.evaluation.window import Window

KINDS: dict[str, dict[str, Any]] = {"inline": {}, "cluster": {}, "timeout": {"timeout": 60}}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    request.getfixturevalue("inline" if request.param == "inline" else "cluster")
    return KINDS[request.param]


@pytest.mark.parametrize("place", ["inline", "cluster"])
def test_each_of_them(place: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(place)
    numbers = parallel(range(30), partition_size=7)
    odd, plain = numbers.filter(lambda x: x % 2), [*range(1, 30, 2)]
    assert list(odd.enumerate(-3)) == [*enumerate(plain, -3)]
    assert list(odd.zip(numbers, numbers.map(str))) == [
        *zip(plain, range(30), map(str, range(30)), strict=False)
    ]
    assert list(odd.zip()) == [(x,) for x in plain]
    assert list(odd.chain(numbers.map(str), "ab", range(2))) == [*plain, *map(str, range(30)), "a", "b", 0, 1]
    assert list(odd.pairwise().starmap(lambda a, b: b - a)) == [2] * 14
    assert list(odd.scan(max)) == list(odd.scan(max, 0).skip(1)) == plain
    assert list(odd.take_while(lambda x: x < 9)) == [1, 3, 5, 7]
    assert list(odd.drop_while(lambda x: x < 9).map(str)) == [str(x) for x in plain if x >= 9]
    assert list(odd.skip(3)) == plain[3:]
    assert list(odd.skip(99)) == []
    assert list(odd.sample(1, 0)) == plain
    assert list(odd.sample(0.0, 0)) == []
    assert odd.enumerate().map(sum).reduce(max) == 29 + 14
    assert odd.pairwise().fold(lambda n, pair: n + 1, 0, combine=int.__add__) == 14
    odd_ones = odd.enumerate()
    odd_ones.foreach(sum)
    assert list(odd_ones.zip(odd)) == [(i + x, x) for i, x in enumerate(plain)]
    for empty in (parallel([]), parallel([]).map(abs)):
        assert list(empty.enumerate().chain(empty, empty.pairwise())) == list(empty.zip(numbers)) == []
        assert list(empty.scan(max)) == list(empty.take_while(bool).drop_while(bool).skip(1)) == []
        assert list(empty.scan(max, 3)) == [3]


@pytest.mark.usefixtures("cluster")
def test_they_are_lazy_and_stop_reading(tmp_path: Path) -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for x in itertools.count():
            drawn.append(x)
            yield x

    endless = parallel(source, buffersize=40).map(abs)
    made = endless.enumerate().zip(endless.pairwise(), endless.scan(max, 0)).chain(endless).skip(2)
    assert drawn == []
    assert made.take(1) == [((2, 2), (2, 3), 1)]
    assert list(endless.take_while(lambda x: x < 100)) == [*range(100)]
    assert endless.drop_while(lambda x: x < 100).sample(0.5, 1).first() >= 100
    assert len(drawn) < 20_000, "some thousand: what is dropped makes room for more"
    read = len(drawn)
    time.sleep(0.05)
    assert len(drawn) == read, "an evaluation goes on"
    assert list(parallel(range(10**27)).skip(10**27 - 2).skip(1)) == [10**27 - 1]
    assert parallel(range(10**15)).enumerate().skip(1).pairwise().take(1) == [((1, 1), (2, 2))]

    def noted(x: int) -> int:
        append(tmp_path / "calls", x)
        return x

    behind = parallel(range(3)).chain(parallel([7]).map(noted))
    assert behind.take(2) == [0, 1]
    assert not (tmp_path / "calls").exists(), "each begins when it is its turn"
    assert list(behind) == [0, 1, 2, 7]
    assert len(lines(tmp_path / "calls")) == 1


@pytest.mark.usefixtures("inline")
def test_take_makes_no_more_than_it_gives_also_of_a_source_that_is_slow_at_first() -> None:
    """A slow source gives what it has by then, and the rest later: no more than what is left is made then."""
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for x in itertools.count():
            time.sleep(0.2 if x == 1 else 0.0)
            drawn.append(x)
            yield x

    assert parallel(source).enumerate().take(4) == [(x, x) for x in range(4)]
    assert drawn == [0, 1, 2, 3]


@pytest.mark.usefixtures("inline")
def test_sources_that_are_read_once_and_others() -> None:
    once = parallel(iter(range(5)))
    assert list(once.map(abs).zip(iter("abcde"))) == [*enumerate("abcde")]
    with pytest.raises(SourceConsumedError, match="has been read by an earlier evaluation"):
        list(once.enumerate())
    twice = parallel(iter(range(5))).map(abs)
    with pytest.raises(SourceConsumedError):
        list(twice.zip(twice))
    bag = read_text(__file__).map(str.strip).skip(0)
    assert next(iter(parallel(range(2)).zip(bag, {"a": 1}))) == (0, bag.first(), ("a", 1))
    assert list(parallel("ab").zip(lambda: iter("cd"))) == [("a", "c"), ("b", "d")]
    with pytest.raises(ValueError, match="zip\\(\\) argument 2 is longer than argument 1"):
        list(parallel("ab").map(str).zip("abc", strict=True))


def test_failures_are_those_of_elements(kind: dict[str, Any]) -> None:
    numbers = parallel(range(20), partition_size=6, **kind)

    def risky(x: int) -> bool:
        return 6 // (12 - x) >= 0 and x < 9

    assert list(numbers.take_while(risky)) == [*range(9)], "12 is behind the end"
    assert list(numbers.drop_while(risky)) == [*range(9, 20)]
    late = numbers.drop_while(lambda x: 6 // (5 - x) > -9 and x < 9)
    with pytest.raises(ZeroDivisionError) as raised:
        list(late)
    assert raised.value.__notes__ == ["in drop_while(lambda), at element 5: 5"]

    def never(x: int) -> bool:
        return 6 // (5 - x) > -9

    assert list(numbers.take_while(never, on_error="skip")) == [x for x in range(20) if x != 5]
    assert list(numbers.take_while(never, on_error=lambda e: -e.element))[4:7] == [4, -5, 6]
    assert list(numbers.drop_while(never, on_error="skip")) == []
    assert list(numbers.drop_while(never, on_error=lambda e: -e.element)) == [-5, *range(6, 20)]
    pairs = numbers.zip(itertools.repeat(3)).starmap(lambda a, b: b // a, on_error="skip")
    assert (len(list(pairs)), [(e.step, e.element) for e in pairs.errors]) == (
        19,
        [("starmap(lambda)", (0, 3))],
    )
    with pytest.raises(TypeError) as of_scan:
        list(numbers.map(str).scan(lambda a, b: a + b, 1))
    assert of_scan.value.__notes__ == ["in scan(lambda), at element 0 of those that reached it: '0'"]
    stream = iter(numbers.chain(numbers.map(lambda x: 1 // (x - 3))).enumerate())
    assert [next(stream) for _ in range(23)][-1] == (22, -1)
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_starmap_has_the_settings_of_map(kind: dict[str, Any], tmp_path: Path) -> None:
    async def power(a: int, b: int) -> int:
        return a**b

    def flaky(a: int, b: int) -> int:
        append(tmp_path / "calls", a)
        if len(lines(tmp_path / "calls")) < 2:
            raise OSError
        return a - b

    pairs = parallel([(2, 3), [3, 2], "ab"], on_error="skip", **kind)
    assert list(pairs.starmap(power)) == [8, 9]
    assert list(pairs.starmap(pow, concurrency=2, timeout=math.inf)) == list(pairs.starmap(pow)) == [8, 9]
    assert list(parallel([(5, 1)], **kind).starmap(flaky, retries=2)) == [4]
    with pytest.raises(TypeError, match="argument after \\* must be an iterable, not int"):
        list(parallel([3]).starmap(pow))


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_costs_nothing(tmp_path: Path) -> None:
    def deadly(x: int) -> int:
        if x == 33 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    numbers = parallel(range(60), partition_size=10).map(deadly)
    chain = numbers.enumerate().zip(parallel(range(60)).map(str)).scan(lambda n, x: n + x[0][0], 0).skip(1)
    assert list(chain) == [*itertools.accumulate(range(60))]
    assert chain.stats.deaths == 1


@pytest.mark.usefixtures("inline")
def test_numbers_of_what_is_read_by_others() -> None:
    numbers, others = parallel(range(40), partition_size=8), parallel(range(9), partition_size=4)
    both = numbers.filter(lambda x: x % 2).zip(others.map(str), "abcdefghij").map(len)
    chained = both.chain(others.map(abs)).map(str)
    assert list(chained) == ["3"] * 9 + [*map(str, range(9))]
    stats = chained.stats
    assert [s.label for s in stats.steps] == [
        *("filter(lambda x: x % 2)", "map(str)", "zip(2 others)", "map(len)", "map(abs)"),
        *("chain(1 other)", "map(str)"),
    ]
    assert [s.left for s in stats.steps[3:]] == [9, 9, 18, 18]
    assert stats.steps[2].entered == stats.steps[0].left + stats.steps[1].left + 9
    assert (stats.elements_out, stats.state, stats.failed) == (18, "ended", 0)
    assert repr(both).endswith(
        ".zip(parallel(range(0, 9)).map(str), parallel(<str of 10 elements>)).map(len)>"
    )
    cut = numbers.take_while(lambda x: x < 9)
    assert list(cut)
    assert [(s.label, s.filtered > 0) for s in cut.stats.steps[1:]] == [("cut", True)]
    failing = parallel([1, 0], on_error="skip").map(lambda x: 1 // x)
    found = numbers.map(abs).chain(failing).enumerate()
    assert len(list(found)) == 41
    assert [(e.step_index, e.element) for e in found.errors] == [(1, 0)]


@pytest.mark.usefixtures("cluster")
def test_on_workers_in_coroutines_and_as_dask_bags() -> None:
    numbers = parallel(range(9)).filter(lambda x: x % 2)
    made = numbers.enumerate().take_while(lambda x: x[0] < 3).chain(numbers.scan(max), "ab")
    expected = [(0, 1), (1, 3), (2, 5), 1, 3, 5, 7, "a", "b"]

    async def drawn() -> list[Any]:
        return [x async for x in made]

    assert asyncio.run(drawn()) == list(made) == expected
    assert list(pickle.loads(cloudpickle.dumps(parallel(range(3)).enumerate().skip(1)))) == [(1, 1), (2, 2)]
    within = parallel([1, 2]).map(lambda n: list(made.skip(n).take(2)))
    assert list(within) == [expected[1:3], expected[2:4]]
    assert made.bag.compute(scheduler="sync") == expected
    assert sorted(map(str, made.unordered())) == sorted(map(str, expected))


@pytest.mark.usefixtures("inline")
def test_values_that_are_written_into_are_copied() -> None:
    def noting(seen: list[int], x: int) -> list[int]:
        seen.append(x)
        return seen

    rows = parallel(range(3)).map(abs).scan(noting, [])
    assert list(rows) == list(rows) == [[], [0], [0, 1], [0, 1, 2]]


@pytest.mark.usefixtures("inline")
def test_samples_do_not_depend_on_partitions() -> None:
    found = [list(parallel(range(2000), partition_size=n).sample(0.25, seed=b"x")) for n in (7, 100)]
    found.append(list(parallel(range(2000)).map(abs).sample(0.25, seed=b"x")))
    assert found[0] == found[1] == found[2]
    assert 400 < len(found[0]) < 600
    assert found[0] != list(parallel(range(2000)).sample(0.25, seed="x"))
    # So that samples of earlier versions are those of later ones.
    assert list(parallel(range(40)).sample(0.2, 1))[:6] == SAMPLE


SAMPLE = [1, 4, 5, 11, 17, 18]


@pytest.mark.usefixtures("inline")
def test_what_is_refused(tmp_path: Path) -> None:
    numbers: Any = parallel(range(3))
    saved: ParallelGen[int] = parallel(range(3), checkpoint=tmp_path / "saved")
    refused = [
        (lambda: numbers.skip(-1), ValueError, r"skip\(\) needs a whole number from 0 up, got -1"),
        (lambda: numbers.enumerate(0.5), TypeError, r"enumerate\(\) needs a whole number, got 0.5"),
        (lambda: numbers.zip(3), TypeError, r"zip\(\) needs an iterable, an iterator, .* got 3 \(an int\)"),
        (lambda: numbers.chain(int), TypeError, r"chain\(\) needs an iterable"),
        (lambda: numbers.scan(3), TypeError, r"scan\(\) needs a function, got 3"),
        (lambda: numbers.take_while(None), TypeError, r"take_while\(\) needs a function, got None"),
        (lambda: numbers.drop_while(bool, retires=1), TypeError, r"drop_while\(\) has no setting 'retires'"),
        (lambda: numbers.sample(1.5, 0), ValueError, r"sample\(\) needs a probability from 0 to 1, got 1.5"),
        (lambda: numbers.sample("1", 0), TypeError, r"sample\(\) needs a probability from 0 to 1"),
        (lambda: numbers.sample(0.5, None), TypeError, r"seed must be a number, a string or bytes, got None"),
        (lambda: numbers.starmap(None), TypeError, r"starmap\(\) needs a function, got None"),
        (
            lambda: saved.map(abs).enumerate(),
            TypeError,
            r"enumerate\(\) has the steps before it .*: call enumerate\(\) first, or leave checkpoint out",
        ),
        (
            lambda: saved.take_while(bool),
            TypeError,
            r"take_while\(\) calls its function .*: leave checkpoint out",
        ),
        (lambda: numbers.zip(saved), TypeError, r"zip\(\) reads .* leave its checkpoint out"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()
    assert list(saved.enumerate().map(sum)) == list(saved.enumerate().map(sum)) == [0, 2, 4]


def test_a_long_rest_is_cut_in_several_groups(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick elements make large partitions; what is slow among the next is handed back, not lost."""
    left: list[int] = []
    cut_rest = Window._cut_rest

    def cut(window: Window, threads: int) -> Any:
        slot = window._rests[0]
        group = cut_rest(window, threads)
        left.append(len(slot.rest or ()))
        return group

    def slow_for_a_while(x: int) -> int:
        if 150_000 < x < 156_000:
            time.sleep(0.001)
        return x

    monkeypatch.setattr(Window, "_cut_rest", cut)
    assert list(parallel(range(400_000)).map(slow_for_a_while)) == list(range(400_000))
    assert any(left), "no rest was longer than a group"


def first_digit(text: Any) -> int:
    return int(str(text)[0])


# Chains that read one whose elements are tasks, or parts of files, and not those that come out of it.
BEHIND: dict[str, Any] = {
    "sorted and enumerate": lambda lines: parallel(range(3000)).sorted(first_digit).enumerate(),
    "sorted and skip": lambda lines: parallel(range(3000), buffersize=900).sorted(first_digit).skip(2),
    "sorted and distinct": lambda lines: parallel(range(3000)).sorted(first_digit).distinct(),
    "sorted and group_by": lambda lines: parallel(range(3000)).sorted(first_digit).group_by(int),
    "sorted again": lambda lines: parallel(range(3000)).sorted().sorted(first_digit).enumerate(),
    "lines and enumerate": lambda lines: read_text(lines, files_per_partition=1).enumerate(),
    "lines and distinct": lambda lines: read_text(lines, partition_size=1).distinct(),
}


@pytest.mark.parametrize("chain", BEHIND)
def test_what_is_read_from_another_chain_goes_on_in_partitions_of_its_own(
    cluster: Connection, tmp_path: Path, chain: str
) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"{x}\n" for x in range(3000)))
    behind = BEHIND[chain](tmp_path / "lines.txt").map(repr)
    assert len(list(behind)) == 3000 - 2 * ("skip" in chain)
    assert behind.stats.partitions < 1000, "one for each element"
