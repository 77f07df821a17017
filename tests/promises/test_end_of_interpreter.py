"""The end of the interpreter: an evaluation works there, or raises one clear error at once.

Never a hang, and never a traceback of somebody else's.
"""

from __future__ import annotations

import re

import pytest
from scripts import Scripts

AT_THE_END = "parcoll.errors.ClusterStartError: nothing can be evaluated any more, since the interpreter"

EVALUATED = "sum(parallel(range(4)).map(lambda x: x + 1))"


ERROR = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit))\b.*", re.MULTILINE)


def finalized(scripts: Scripts, text: str) -> tuple[str, list[str]]:
    """Run a script; return what it printed, and the errors on standard error, one for each traceback."""
    out, err = scripts.run(scripts.write("script.py", text))
    errors = ERROR.findall(err)
    assert len(errors) == err.count("Traceback (most recent call last)"), err
    return out, errors


@pytest.mark.parametrize(
    ("before", "evaluated"),
    [
        ("", EVALUATED),
        (f"print({EVALUATED})", EVALUATED),
        ("", "connect(n_workers=1)"),
        ("", "parallel([1]).reduce(max)"),
    ],
    ids=["the first", "a later one", "a connection", "a reduce"],
)
def test_an_evaluation_while_all_is_taken_apart_raises_one_error(
    scripts: Scripts, before: str, evaluated: str
) -> None:
    text = f"""
        import builtins
        from parcoll import connect, parallel
        class Q:
            def __del__(self):
                {evaluated}
        builtins.k = Q()
        {before}
        """
    out, errors = finalized(scripts, text)
    assert out == ("10\n" if before else "")
    assert [error.startswith(AT_THE_END) for error in errors] == [True]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("@atexit.register", "", id="registered before parcoll was imported"),
        pytest.param("", "@atexit.register", id="registered after that"),
    ],
)
@pytest.mark.parametrize("evaluates_before", [False, True], ids=["the first evaluation", "a later one"])
def test_an_evaluation_in_an_exit_handler_works(
    scripts: Scripts, first: str, then: str, evaluates_before: bool
) -> None:
    text = f"""
        import atexit
        if {bool(first)}:
            atexit.register(lambda: go())
        from parcoll import parallel
        def go():
            print("exit", {EVALUATED})
        if {bool(then)}:
            atexit.register(go)
        if {evaluates_before}:
            print({EVALUATED})
        """
    assert scripts.run_file(text) == ("10\n" if evaluates_before else "") + "exit 10\n"


def test_an_exit_handler_registered_after_an_evaluation_and_one_with_a_cluster_of_its_own(
    scripts: Scripts,
) -> None:
    text = f"""
        import atexit
        from parcoll import connect, parallel
        print({EVALUATED})
        @atexit.register
        def last():
            print("last", {EVALUATED})
        @atexit.register
        def first():
            with connect(n_workers=1):
                print("own", {EVALUATED})
        """
    assert scripts.run_file(text) == "10\nown 10\nlast 10\n"


def test_a_thread_that_outlives_the_script_may_be_the_first_to_evaluate(scripts: Scripts) -> None:
    text = f"""
        import threading
        from parcoll import parallel
        def go():
            print("go", {EVALUATED})
            print("large", list(parallel([bytes(10**7)] * 2).map(lambda b: len(b + b))))
        threading.Thread(target=go).start()
        """
    assert scripts.run_file(text) == "go 10\nlarge [20000000, 20000000]\n"


def test_a_thread_goes_on_when_the_last_line_has_run(scripts: Scripts) -> None:
    text = """
        import threading, time
        from parcoll import connect, parallel
        started = threading.Event()
        def numbers():
            for i in range(40):
                started.set()
                time.sleep(0.01)
                yield i
        def go():
            print("go", sum(parallel(numbers).map(lambda x: x + 1)))
            with connect(n_workers=1):
                print("own", parallel(range(3)).count())
        threading.Thread(target=go).start()
        started.wait()
        """
    assert scripts.run_file(text) == "go 820\nown 3\n"


def test_a_thread_that_exits_and_iterators_that_are_left_open(scripts: Scripts) -> None:
    text = """
        import itertools, sys, threading
        from parcoll import parallel
        kept = []
        def leaves():
            kept.append(iter(parallel(itertools.count()).map(lambda x: x + 1)))
            print(next(kept[-1]))
            sys.exit(3)
        leaving = threading.Thread(target=leaves)
        leaving.start()
        leaving.join()
        kept.append(iter(parallel(itertools.count()).map(lambda x: x + 1)))
        print(next(kept[-1]))
        threading.Thread(target=leaves).start()
        """
    assert scripts.run_file(text) == "1\n1\n1\n"


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_a_daemon_that_evaluates_to_the_end_is_told_that_the_cluster_is_closed(
    scripts: Scripts, seconds: float
) -> None:
    """While the cluster starts, and later."""
    text = f"""
        import threading, time
        from parcoll import parallel
        def go():
            while True:
                {EVALUATED}
        for _ in range(2):
            threading.Thread(target=go, daemon=True).start()
        time.sleep({seconds})
        print("end", flush=True)
        """
    out, err = scripts.run(scripts.write("script.py", text))
    assert out == "end\n"
    closed = [
        f"parcoll.errors.Cluster{kind}Error: the local cluster {when} closed"
        for kind in ("Lost", "Start")
        for when in ("is", "was")
    ]
    # Two threads may print at the same time, each with what its error was raised for; and a daemon that gets
    # its error as the interpreter ends may not come to the end of it.
    errors = ERROR.findall(err)
    assert err.count("Traceback (most recent call last)") - len(errors) in (0, 1, 2), err
    assert not errors or errors[-1].startswith((AT_THE_END, *closed)), err
