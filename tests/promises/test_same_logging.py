"""What functions log on workers reaches the script's own handlers, as the script has set up its logging."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts, eventually, lines
from ways import HERE, One

from parcoll import Connection, parallel
from parcoll.cluster.session import DistributedSession

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

LOGGER = logging.getLogger("same.logging")


class Kept(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        """What the records say."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Give a handler of one logger, which lets everything through."""
    handler = Kept()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)
    LOGGER.propagate = True


# Records ------------------------------------------------------------------------------------------


def test_records_reach_the_handlers_in_order(one: One, kept: Kept) -> None:
    def log(x: int) -> int:
        for n in range(50):
            LOGGER.info("%d of %s", n, {"x": x}, extra={"user": "me", "lock": None})
        LOGGER.debug("low")
        return x

    assert one(log) == 1
    assert kept.messages == [f"{n} of {{'x': 1}}" for n in range(50)] + ["low"]
    record = kept.records[0]
    assert (record.levelname, record.name, record.user) == ("INFO", "same.logging", "me")
    assert record.funcName == "log"
    assert record.pathname == __file__
    assert (record.processName or "").startswith("worker-")
    assert record.process != os.getpid()


def test_levels_of_now_hold(one: One, kept: Kept) -> None:
    def log(x: int) -> tuple[int, bool]:
        LOGGER.info("info")
        LOGGER.warning("warning")
        logging.getLogger("same.logging.below").info("below")
        return x, LOGGER.isEnabledFor(logging.INFO)

    LOGGER.setLevel(logging.WARNING)
    assert one(log) == (1, False)
    assert kept.messages == ["warning"]
    LOGGER.setLevel(logging.INFO)
    assert one(log) == (1, True)
    assert kept.messages == ["warning", "info", "warning", "below"]
    logging.disable(logging.WARNING)
    try:
        assert one(log) == (1, False)
    finally:
        logging.disable(logging.NOTSET)
    assert len(kept.messages) == 4
    kept.setLevel(logging.ERROR)
    one(log)
    assert len(kept.messages) == 4


def test_an_exception_comes_with_its_traceback(one: One, kept: Kept) -> None:
    def fail(x: int) -> int:
        try:
            return 1 // (x - 1)
        except ZeroDivisionError:
            LOGGER.exception("it failed")
            return 0

    assert one(fail) == 0
    record = kept.records[0]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    text = logging.Formatter("%(message)s").format(record)
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
    assert "return 1 // (x - 1)" in text
    assert text.endswith("ZeroDivisionError: integer division or modulo by zero")


def test_arguments_that_change_or_cannot_travel(one: One, kept: Kept) -> None:
    def log(x: int) -> int:
        found = [1]
        LOGGER.info("has %s", found)
        found.append(2)
        LOGGER.info("iterates %s", iter(found).__class__.__name__)
        LOGGER.info("a generator: %s", (n for n in found), extra={"lock": __import__("threading").Lock()})
        return x

    one(log)
    assert kept.messages[:2] == ["has [1]", "iterates list_iterator"]
    assert kept.messages[2].startswith("a generator: <generator object")
    assert "lock" in kept.records[2].lock  # type: ignore[attr-defined]


def test_filters_names_of_levels_and_factories(one: One, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.addLevelName(7, "TRACE")
    LOGGER.setLevel(1)
    factory = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.made_in = os.getpid()
        return record

    logging.setLogRecordFactory(make)
    kept.addFilter(lambda record: "secret" not in record.getMessage())

    def log(_: object) -> int:
        LOGGER.log(7, "trace")
        LOGGER.info("secret")
        return os.getpid()

    try:
        pid = one(log)
    finally:
        logging.setLogRecordFactory(factory)
    assert [(r.levelname, r.getMessage(), r.made_in == pid) for r in kept.records] == [
        ("TRACE", "trace", True)
    ]  # type: ignore[attr-defined]


def test_whether_a_logger_hands_on(one: One, kept: Kept) -> None:
    below = logging.getLogger(f"{LOGGER.name}.below")

    def look(_: object) -> tuple[bool, bool, bool]:
        return below.propagate, below.hasHandlers(), below.disabled

    assert one(look) == (True, True, False)
    below.propagate = False
    try:
        assert [one(look) for _ in range(3)] == [(False, False, False)] * 3
        below.disabled = True
        assert one(look) == (False, False, True)
    finally:
        below.propagate, below.disabled = True, False
    assert [one(look) for _ in range(3)] == [(True, True, False)] * 3


def test_loggers_of_a_class_of_the_user_s_own(one: One, kept: Kept) -> None:
    class Loud(logging.Logger):
        def shout(self, text: str) -> None:
            self.warning(text.upper())

    before = logging.getLoggerClass()
    logging.setLoggerClass(Loud)
    try:
        loud: Any = logging.getLogger(f"{LOGGER.name}.loud.{os.urandom(4).hex()}")
    finally:
        logging.setLoggerClass(before)
    one(lambda _: loud.shout("here"))
    assert [record.getMessage() for record in kept.records] == ["HERE"]


def test_what_the_script_has_put_into_a_logger(one: One, kept: Kept) -> None:
    mine: Any = logging.getLogger(f"{LOGGER.name}.mine.{os.urandom(4).hex()}")
    mine.tenant, mine.again = "a", lambda text: mine.warning("%s %s", text, text)
    assert one(lambda _: (mine.again("now"), mine.tenant)[1]) == "a"
    mine.tenant = "b"
    assert one(lambda _: mine.tenant) == "b"
    assert [record.getMessage() for record in kept.records] == ["now now"]


def test_each_record_comes_once_whatever_becomes_of_the_results(way: str, kept: Kept) -> None:
    def log(x: int) -> int:
        LOGGER.info("at %d", x)
        return x

    chain = parallel(range(200), partition_size=10).map(log)
    assert chain.take(15) == list(range(15))
    assert {f"at {n}" for n in range(10)} <= set(kept.messages)
    assert len(set(kept.messages)) == len(kept.messages)
    kept.records.clear()
    assert chain.reduce(lambda a, b: a + b) == sum(range(200))
    assert sorted(kept.messages) == sorted(f"at {n}" for n in range(200))
    kept.records.clear()
    chain.foreach(log)
    assert sorted(kept.messages) == sorted(f"at {n}" for n in [*range(200)] * 2)


def test_records_of_tasks_whose_results_nobody_takes(
    cluster: Connection, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    """An iterator that is left has run them all the same."""
    close = DistributedSession.close

    def close_late(session: DistributedSession) -> None:
        assert eventually(lambda: not session._receiving.keys(), 30)
        close(session)

    def log(x: int) -> int:
        LOGGER.info("at %d", x)
        return x

    monkeypatch.setattr(DistributedSession, "close", close_late)
    chain = parallel(range(200), partition_size=2).map(log)
    stream = iter(chain)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert len(kept.messages) >= 2 * chain.stats.window > 2
    assert sorted(kept.messages) == sorted(f"at {n}" for n in range(len(kept.messages)))


def test_records_before_an_error(one: One, kept: Kept) -> None:
    def fail(x: int) -> int:
        LOGGER.info("before")
        raise KeyError(x)

    with pytest.raises(KeyError):
        one(fail)
    assert kept.messages == ["before"]


def test_records_of_a_call_that_is_stopped(way: str, kept: Kept) -> None:
    def hang(x: int) -> int:
        LOGGER.info("begins")
        time.sleep(60)
        return x

    assert list(parallel([1], timeout=1, on_error="skip").map(hang)) == []
    assert kept.messages == ["begins"]


def test_records_come_while_a_function_runs(way: str, kept: Kept) -> None:
    if way not in HERE:
        pytest.skip("there they come with the outcome")
    seen: list[float] = []
    kept.emit = lambda record: seen.append(time.time() - record.created)  # type: ignore[method-assign]

    def log(x: int) -> int:
        LOGGER.info("first")
        time.sleep(2)
        return x

    assert list(parallel([1]).map(log)) == [1]
    assert len(seen) == 1
    assert seen[0] < 1.5


def test_a_handler_may_evaluate(one: One, kept: Kept) -> None:
    found: list[int] = []
    kept.emit = lambda record: found.append(parallel(range(10)).count())  # type: ignore[method-assign]

    def log(x: int) -> int:
        LOGGER.info("x")
        return x

    assert one(log) == 1
    assert found == [10]


def test_threads_that_a_function_starts(one: One, kept: Kept) -> None:
    import threading

    def log(x: int) -> int:
        thread = threading.Thread(target=LOGGER.info, args=("from a thread",))
        thread.start()
        thread.join()
        time.sleep(0.2)
        return x

    assert one(log) == 1
    one(abs)
    assert kept.messages == ["from a thread"]


def test_a_nested_evaluation_s_records(way: str, kept: Kept) -> None:
    def inner(x: int) -> int:
        LOGGER.info("inner %d", x)
        return x

    def outer(x: int) -> int:
        LOGGER.info("outer")
        return sum(parallel([1, 2]).map(inner))

    assert list(parallel([1]).map(outer)) == [3]
    assert sorted(kept.messages) == ["inner 1", "inner 2", "outer"]


# Scripts ------------------------------------------------------------------------------------------


def test_a_format_and_a_file_that_the_script_has_set_up(scripts: Scripts) -> None:
    text = """
    import logging, sys
    from parcoll import parallel
    logging.getLogger("parcoll").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(message)s", stream=sys.stdout)
    file = logging.FileHandler("log")
    file.setFormatter(logging.Formatter("%(processName)s %(name)s %(message)s"))
    logging.getLogger("a").addHandler(file)
    def log(x):
        logging.info("root %d", x)
        logging.getLogger("a.b").warning("child %d", x)
        return x
    print(*parallel([1]).map(log))
    print(*parallel([2], timeout=30).map(log))
    """
    out = scripts.run_file(text).splitlines()
    assert out == ["INFO:root 1", "WARNING:child 1", "1", "INFO:root 2", "WARNING:child 2", "2"]
    found = lines(scripts.folder / "log")
    assert [line.partition(" ")[2] for line in found] == ["a.b child 1", "a.b child 2"]
    assert all(line.startswith("worker-") for line in found)


def test_a_script_that_has_set_up_nothing(scripts: Scripts) -> None:
    text = """
    import logging
    from parcoll import parallel
    def log(x):
        logging.getLogger("a").info("not shown")
        logging.getLogger("a").warning("shown")
        return x
    print(*parallel([1]).map(log))
    """
    assert scripts.run(scripts.write("script.py", text)) == ("1\n", "shown\n")


def test_a_module_that_adds_a_handler_when_it_is_imported(scripts: Scripts) -> None:
    scripts.write(
        "noisy.py",
        """
        import logging, sys
        logger = logging.getLogger("noisy")
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.DEBUG)
        def f(x):
            logger.debug("in f")
            return x
        """,
    )
    text = """
    import logging, noisy
    from parcoll import parallel
    print(*parallel([1]).map(noisy.f))
    noisy.logger.setLevel(logging.WARNING)
    print(*parallel([1]).map(noisy.f))
    """
    assert scripts.run(scripts.write("script.py", text)) == ("1\n1\n", "in f\n")


def test_a_function_that_sets_up_logging_itself(scripts: Scripts) -> None:
    text = """
    import logging
    from parcoll import parallel
    def log(x):
        logging.basicConfig(level=logging.INFO, format="own %(message)s", filename="log")
        logging.info("info %d", x)
        return x
    print(*parallel([1, 2, 3], partition_size=1).map(log))
    """
    assert scripts.run(scripts.write("script.py", text)) == ("1 2 3\n", "")
    assert sorted(lines(scripts.folder / "log")) == ["own info 1", "own info 2", "own info 3"]


def test_warnings_that_are_logged(scripts: Scripts) -> None:
    text = """
    import logging, sys, warnings
    from parcoll import parallel
    logging.captureWarnings(True)
    logging.basicConfig(format="%(name)s", stream=sys.stdout)
    def warn(x):
        warnings.warn("odd")
        return x
    print(*parallel([1]).map(warn))
    """
    assert scripts.run_file(text) == "py.warnings\n1\n"


def test_dask_s_own_records_stay_where_they_are(way: str, caplog: pytest.LogCaptureFixture) -> None:
    def log(x: int) -> int:
        logging.getLogger("distributed.worker").warning("dask's")
        logging.getLogger("same.caught").warning("own")
        return x

    assert list(parallel([1]).map(log)) == [1]
    names = [record.name for record in caplog.records if not record.name.startswith("parcoll")]
    assert names == ["same.caught"]


def test_a_file_of_the_script_gets_every_line_once(way: str, tmp_path: Path, kept: Kept) -> None:
    file = logging.FileHandler(tmp_path / "log")
    LOGGER.addHandler(file)

    def log(x: int) -> int:
        LOGGER.info("line %d", x)
        return x

    try:
        assert parallel(range(2_000), partition_size=50).map(log).count() == 2_000
    finally:
        LOGGER.removeHandler(file)
        file.close()
    found = lines(tmp_path / "log")
    assert sorted(found) == sorted(f"line {n}" for n in range(2_000))
    at = [int(line.split()[1]) for line in found]
    for start in range(0, 2_000, 50):
        assert [n for n in at if start <= n < start + 50] == list(range(start, start + 50))
