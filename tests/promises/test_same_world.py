"""A function finds on a worker the state that the script's process has when it evaluates."""

from __future__ import annotations

import csv
import decimal
import locale
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import Scripts
from ways import HERE, Make, One

from parcoll import parallel
from parcoll.connecting.current import current_connection

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


@pytest.fixture
def here(way: str) -> None:
    """Have a test run where workers are on the script's machine."""
    if way not in HERE:
        pytest.skip("it belongs to a machine")


# What belongs to the machine ----------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_directory_and_environment(one: One, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "1")

    def look(_: object) -> tuple[str, str | None, str | None]:
        return os.getcwd(), os.environ.get("RUN"), os.environ.get("OLD")

    assert one(look) == (os.getcwd(), None, "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN", "2")
    monkeypatch.delenv("OLD")
    assert one(look) == (str(tmp_path), "2", None)
    monkeypatch.setenv("RUN", "3")
    assert one(look) == (str(tmp_path), "3", None)


@pytest.mark.usefixtures("here")
def test_relative_paths_and_programs_that_a_function_starts(
    one: One, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.txt").write_text("found")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "said")
    assert one(lambda _: Path("data.txt").read_text()) == "found"
    assert one(lambda _: os.popen("echo $WORD; pwd").read().split()) == ["said", str(tmp_path)]


@pytest.mark.usefixtures("here")
def test_thread_pools_keep_the_size_that_workers_are_given(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: object) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert one(look) == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert one(look) == "7"


@pytest.mark.usefixtures("here")
def test_umask_path_arguments_and_time_zone(
    one: One, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def umask(_: object) -> int:
        found = os.umask(0)
        os.umask(found)
        return found

    before = os.umask(0o027)
    try:
        assert one(umask) == 0o027
    finally:
        os.umask(before)
    assert one(umask) == before
    monkeypatch.setattr(sys, "path", [*sys.path[::-1], str(tmp_path)])
    assert one(lambda _: list(sys.path)) == [entry for entry in sys.path if entry]
    monkeypatch.setattr(sys, "argv", ["program", "--fast"])
    assert one(lambda _: sys.argv) == ["program", "--fast"]
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert one(lambda _: (time.tzname, time.localtime(0).tm_hour)) == (("JST", "JST"), 9)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert one(lambda _: time.tzname) == time.tzname


# The interpreter ----------------------------------------------------------------------------------


def test_decimal_context(one: One) -> None:
    with decimal.localcontext() as context:
        context.prec = 50
        assert one(lambda _: decimal.Decimal(1) / 3) == decimal.Decimal(1) / 3
        context.rounding = decimal.ROUND_DOWN
        assert one(lambda _: round(decimal.Decimal("2.675"), 2)) == decimal.Decimal("2.67")
        context.traps[decimal.Inexact] = True
        with pytest.raises(decimal.Inexact):
            one(lambda _: decimal.Decimal(1) / 3)
    assert one(lambda _: len(str(decimal.Decimal(1) / 3))) == 30


def test_recursion_limit(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(n: int) -> int:
        return n if n == 0 else 1 + deep(n - 1)

    def deep_in_c(n: int) -> int:
        return 0 if n == 0 else 1 + max(map(deep_in_c, [n - 1]))

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5500)
    try:
        assert one(lambda _: (deep(3_000), sys.getrecursionlimit())) == (3_000, 5500)
        assert one(lambda _: deep_in_c(2_000)) == 2_000
    finally:
        sys.setrecursionlimit(before)
    with pytest.raises(RecursionError):
        one(lambda _: deep(3_000))


def test_the_length_of_tracebacks(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    def within() -> str:
        try:
            raise ValueError("no")
        except ValueError:
            return traceback.format_exc()

    def look(_: object) -> bool:
        return "within" in within()

    assert one(look) is True
    monkeypatch.setattr(sys, "tracebacklimit", 0, raising=False)
    assert one(look) is look(0) is False
    monkeypatch.setattr(sys, "tracebacklimit", 1)
    assert one(look) is look(0) is True
    monkeypatch.undo()
    assert [one(lambda _: hasattr(sys, "tracebacklimit")) for _ in range(3)] == [False] * 3


def test_warnings_filters(one: One, capfd: pytest.CaptureFixture[str]) -> None:
    def warn(_: object, category: type[Warning] = UserWarning) -> int:
        warnings.warn("odd", category, stacklevel=1)
        return 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="odd"):
            one(warn)
        warnings.simplefilter("ignore")
        assert one(warn) == 1
        warnings.filterwarnings("error", "od", DeprecationWarning)
        assert one(warn) == 1
        with pytest.raises(DeprecationWarning, match="odd"):
            one(lambda x: warn(x, DeprecationWarning))
    assert "odd" not in "".join(capfd.readouterr())


def test_warnings_filters_of_a_class_of_a_module_that_comes_with_the_program(one: One, make: Make) -> None:
    odd = make("odd_warnings", "import warnings\nclass Odd(UserWarning): pass\nwarn = warnings.warn\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=odd.Odd)
        for _ in range(2):
            with pytest.raises(odd.Odd, match="odd"):
                one(lambda _: odd.warn("odd", odd.Odd))


def test_digits_of_an_int(one: One) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(700)
    try:
        with pytest.raises(ValueError, match="limit"):
            one(lambda _: str(10**900))
    finally:
        sys.set_int_max_str_digits(before)
    assert one(lambda _: len(str(10**900))) == 901


def test_locale(one: One) -> None:
    names = [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8", "POSIX") if _is_there(name)]
    before = locale.setlocale(locale.LC_ALL)
    try:
        for name in names:
            locale.setlocale(locale.LC_ALL, name)
            assert one(lambda _: (locale.localeconv(), locale.setlocale(locale.LC_TIME))) == (
                locale.localeconv(),
                locale.setlocale(locale.LC_TIME),
            )
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert one(lambda _: locale.setlocale(locale.LC_NUMERIC)) == locale.setlocale(locale.LC_NUMERIC)


def _is_there(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


# Libraries ----------------------------------------------------------------------------------------


def test_numpy_errors_and_print_options(one: One) -> None:
    before = np.geterr()
    np.seterr(all="raise")
    try:
        with pytest.raises(FloatingPointError):
            one(lambda _: np.float64(1) / np.float64(0))
        np.seterr(all="ignore")
        assert one(lambda _: np.float64(1) / np.float64(0)) == np.inf
    finally:
        np.seterr(**before)  # type: ignore[arg-type]
    with np.printoptions(precision=2):
        assert one(lambda _: str(np.array([1 / 3]))) == "[0.33]"
    assert one(lambda _: (np.geterr(), str(np.array([1 / 3])))) == (before, "[0.33333333]")


def test_socket_timeout_and_field_size(one: One) -> None:
    size = csv.field_size_limit(200_000)
    socket.setdefaulttimeout(12.5)
    try:
        long = "x" * 150_000
        assert one(lambda _: [len(row[0]) for row in csv.reader([long])]) == [150_000]
        assert one(lambda _: socket.getdefaulttimeout()) == 12.5
    finally:
        socket.setdefaulttimeout(None)
        csv.field_size_limit(size)
    with pytest.raises(csv.Error, match="field larger"):
        one(lambda _: list(csv.reader([long])))
    assert one(lambda _: socket.getdefaulttimeout()) is None


# What functions change ----------------------------------------------------------------------------


def test_what_a_function_changes_lasts_to_the_end_of_its_partition(
    one: One, way: str, tmp_path: Path
) -> None:
    here = os.getcwd()

    def change(folder: str) -> tuple[Any, ...]:
        found = decimal.getcontext().prec, sys.getrecursionlimit()
        if way == "local":
            found += os.getcwd(), os.environ.get("LEFT")
            os.chdir(folder)
            os.environ["LEFT"] = "behind"
        decimal.getcontext().prec = 9
        sys.setrecursionlimit(2_000)
        return found

    right: tuple[Any, ...] = (28, sys.getrecursionlimit())
    right += (here, None) if way == "local" else ()
    assert list(parallel([str(tmp_path)] * 8, partition_size=1).map(change)) == [right] * 8
    assert one(lambda _: change(str(tmp_path))) == right
    assert one(lambda _: change(str(tmp_path))) == right


def test_two_threads_with_settings_of_their_own(one: One) -> None:
    found: dict[int, list[int]] = {}

    def evaluate(prec: int) -> None:
        with decimal.localcontext() as context:
            context.prec = prec
            chain = parallel(range(40), partition_size=2).map(lambda _: decimal.getcontext().prec)
            found[prec] = list(chain)

    threads = [threading.Thread(target=evaluate, args=(prec,)) for prec in (7, 70)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {7: [7] * 40, 70: [70] * 40}


def test_a_nested_evaluation_has_what_the_function_has(one: One) -> None:
    def outer(_: object) -> list[int]:
        decimal.getcontext().prec = 33
        return list(parallel([1, 2]).map(lambda _: decimal.getcontext().prec))

    assert next(iter(parallel([1]).map(outer))) == [33, 33]


@pytest.mark.usefixtures("here")
def test_a_second_try_on_another_worker_finds_it_too(one: One, tmp_path: Path) -> None:
    marker = tmp_path / "died"

    def die_once(_: object) -> tuple[str, int]:
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return os.getcwd(), decimal.getcontext().prec

    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with decimal.localcontext() as context:
            context.prec = 44
            assert one(die_once) == (str(tmp_path), 44)
    finally:
        os.chdir(before)


# Other tasks on workers that others use -------------------------------------------------------------


def test_workers_of_others_are_given_back(way: str) -> None:
    if way != "bare":
        pytest.skip("these are ours")
    connection = current_connection()
    assert connection is not None
    before = connection.engine.client.run(sys.getrecursionlimit)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(4321)
    try:
        assert set(parallel(range(20)).map(lambda _: sys.getrecursionlimit())) == {4321}
        assert connection.engine.client.run(sys.getrecursionlimit) == before
    finally:
        sys.setrecursionlimit(limit)


# Flags --------------------------------------------------------------------------------------------

FLAGS = """
import sys, warnings
from parcoll import parallel
names = ("dev_mode", "optimize", "utf8_mode", "bytes_warning", "hash_randomization")
def look(_):
    flags = [getattr(sys.flags, name) for name in names]
    options = {name: value for name, value in sys._xoptions.items() if name != "utf8"}
    return flags, sys.warnoptions, options, [f[:1] + f[2:3] for f in warnings.filters]
list(parallel([1]))
found = look(1)
for timeout in (None, 30):
    there = list(parallel([1], timeout=timeout).map(look))
    print(there == [found] or (there, found))
"""


@pytest.mark.parametrize(
    "flags",
    [["-W", "error::UserWarning"], ["-X", "dev"], ["-OO", "-X", "utf8", "-X", "no_debug_ranges"], ["-bb"]],
    ids=lambda flags: flags[-1],
)
def test_flags_reach_the_workers(scripts: Scripts, flags: list[str]) -> None:
    out, _ = scripts.run(*flags, scripts.write("script.py", FLAGS))
    assert out.splitlines() == ["True", "True"]


def test_the_state_at_a_script_s_first_evaluation(scripts: Scripts) -> None:
    text = """
    import decimal, os, sys
    from parcoll import parallel
    os.makedirs("below")
    os.chdir("below")
    os.environ["RUN"] = "2"
    decimal.getcontext().prec = 5
    def look(_):
        return os.path.basename(os.getcwd()), os.environ["RUN"], str(decimal.Decimal(1) / 3)
    print(*parallel([1]).map(look))
    """
    assert scripts.run_file(text) == "('below', '2', '0.33333')\n"
