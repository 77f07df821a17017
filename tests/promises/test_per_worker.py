"""`per_worker`: an object that is made once in each worker process, and what becomes of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import Scripts, append, eventually, lines
from ways import connected

from parcoll import ElementError, PerWorker, WorkerSetupError, connect, parallel, per_worker
from parcoll.worker import subworker

SETTINGS: dict[str, dict[str, Any]] = {"plain": {}, "timeout": {"timeout": 0.3}}
EVERYWHERE = pytest.mark.parametrize("mode", ["local", "bare"], indirect=True)
SLOW = pytest.param("bare", marks=pytest.mark.slow)
ALIKE = pytest.mark.parametrize("mode", ["local", SLOW], indirect=True)


@pytest.fixture(scope="module")
def mode(
    request: pytest.FixtureRequest, leaves_no_trace: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with connected(request.param, tmp_path_factory.mktemp("cluster") / "bare"):
        yield request.param


def noting(folder: Path, seconds: float = 0.0) -> PerWorker[int]:
    """An object whose making and whose end are noted in files, by process."""

    @per_worker
    def number() -> Iterator[int]:
        time.sleep(seconds)
        append(folder / "made", os.getpid())
        yield 7
        append(folder / "ended", os.getpid())

    return number


def once(pids: list[str]) -> bool:
    return len(pids) == len(set(pids))


@EVERYWHERE
@pytest.mark.parametrize("kind", SETTINGS)
def test_it_is_made_once_in_each_process_over_evaluations(mode: str, kind: str, tmp_path: Path) -> None:
    """In steps, where elements fail, in folds; and its seconds count for no call's timeout."""
    number = noting(tmp_path, seconds=0.5)
    for _ in range(2):
        settings = SETTINGS[kind] | {"on_error": lambda error: error.element * number()}
        chain = parallel(range(16), partition_size=4, **settings).map(lambda x: x // (x % 4) * number())
        assert list(chain) == [x // (x % 4) * 7 if x % 4 else x * 7 for x in range(16)]
        assert (chain.stats.failed, chain.stats.timeouts, len(chain.errors)) == (4, 0, 4)
        folded = parallel(range(16), partition_size=4, **SETTINGS[kind])
        assert folded.fold(lambda n, x: n + x * number(), 0, combine=int.__add__) == 120 * 7
    made = lines(tmp_path / "made")
    assert once(made)
    assert len(made) <= 2
    number.close()
    assert sorted(lines(tmp_path / "ended")) == sorted(made)
    assert parallel([1], **SETTINGS[kind]).map(lambda x: number()).first() == 7
    assert len(lines(tmp_path / "made")) == len(made) + 1, "made anew"


@ALIKE
def test_its_seconds_are_a_row_of_stats_and_no_part_of_the_step(mode: str, tmp_path: Path) -> None:
    number = noting(tmp_path, seconds=0.3)
    chain = parallel(range(10), partition_size=5).map(lambda x: number() + x)
    assert list(chain) == list(range(7, 17))
    (made,) = chain.stats.made.values()
    assert (made.label, made.count) == ("per_worker(number)", len(lines(tmp_path / "made")))
    assert made.count * 0.3 <= made.seconds <= chain.stats.worker_seconds
    assert chain.stats.steps[0].seconds < 0.1
    assert "per_worker(number)" in str(chain.stats)
    number.close()


def failing(folder: Path, times: int) -> PerWorker[str]:
    @per_worker
    def model() -> str:
        append(folder / "tries", os.getpid())
        if len(lines(folder / "tries")) <= times:
            raise OSError("no weights")
        return "loaded"

    return model


def wraps(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        raise LookupError("what is this?") from error


@ALIKE
@pytest.mark.parametrize("kind", [*SETTINGS, "inline"])
def test_a_factory_that_fails_ends_the_evaluation(
    mode: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "inline":
        request.getfixturevalue("inline")
    settings: dict[str, Any] = SETTINGS.get(kind, {})
    model = failing(tmp_path, times=10**6)
    chain = parallel(range(10), on_error="skip", **settings).map(abs).map(lambda x: model())
    with pytest.raises(OSError, match="no weights") as raised:
        list(chain)
    made, place = raised.value.__notes__
    assert (
        made == "raised by the factory of per_worker(model), and not for one element: on_error does not apply"
    )
    assert "in step 2 of 2, map(lambda), at element" in place
    assert (chain.errors, chain.stats.failed, chain.stats.failures[-1].step) == (
        [],
        0,
        "map(lambda x: model())",
    )
    first, second = chain.stats.steps
    assert (first.failed, second.failed, second.entered - second.left, second.added) == (0, 0, 0, 0)
    for made in (
        parallel(range(10), on_error="skip", **settings).map(lambda x: wraps(model)),
        parallel(range(10), on_error=lambda error: 0, **settings).filter(lambda x: wraps(model)),
        parallel(range(10), on_error="skip", **settings).flatmap(lambda x: [wraps(model)]),
    ):
        with pytest.raises(LookupError, match="what is this"):
            list(made)
        assert (made.errors, made.stats.failed) == ([], 0)
    with pytest.raises(OSError, match="no weights"):
        parallel(range(10), **settings).fold(lambda n, x: n + len(model()), 0, combine=int.__add__)


@ALIKE
def test_it_is_tried_again_as_often_as_the_step_is(mode: str, tmp_path: Path) -> None:
    model = failing(tmp_path, times=2)
    chain = parallel([1, 2, 3], retries=2, on_error="skip", partition_size=3).map(lambda x: (x, model()))
    assert list(chain) == [(1, "loaded"), (2, "loaded"), (3, "loaded")]
    assert len(lines(tmp_path / "tries")) == 3
    assert (chain.stats.retries, chain.stats.failed) == (2, 0)


@ALIKE
def test_an_element_that_fails_after_the_factory_is_an_element_that_failed(mode: str, tmp_path: Path) -> None:
    model = failing(tmp_path, times=1)
    chain = parallel([0, 2], retries=1, on_error="skip", partition_size=2).map(lambda x: (model(), 1 // x)[1])
    assert list(chain) == [0]
    assert [error.index for error in chain.errors] == [0]


@pytest.mark.parametrize("mode", ["local"], indirect=True)
def test_a_worker_that_dies_costs_one_more(mode: str, tmp_path: Path) -> None:
    number = noting(tmp_path)
    folder = tmp_path

    def deadly(x: int) -> int:
        if x == 13 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number() + x

    list(parallel(range(4), partition_size=1).map(lambda x: (time.sleep(0.1), number())))
    assert len(lines(tmp_path / "made")) == 2
    assert list(parallel(range(40), partition_size=8).map(deadly)) == [x + 7 for x in range(40)]
    assert eventually(lambda: parallel(range(8), partition_size=1).map(lambda x: number()).count() == 8)
    assert len(lines(tmp_path / "made")) <= 3
    assert once(lines(tmp_path / "made"))
    number.close()


class Holder:
    model: PerWorker[int]


@ALIKE
def test_handles_in_classes_lambdas_and_others(mode: str, tmp_path: Path) -> None:
    first, second = per_worker(lambda: [1]), per_worker(lambda: [2])
    Holder.model = noting(tmp_path)
    of_class = Holder.model
    assert isinstance(of_class, PerWorker)
    outer = per_worker(lambda: first() + second())

    def all_of(x: int) -> Any:
        assert first() is first()
        return first(), second(), outer(), Local.model(), isinstance(Local.model, PerWorker)

    class Local:
        model = of_class

    chain = parallel([1, 2]).map(all_of)
    assert list(chain) == [([1], [2], [1, 2], 7, True)] * 2
    assert parallel([of_class]).map(lambda model: model()).first() == 7, "as an element"

    def inner(n: int) -> int:
        return sum(parallel(range(n)).map(lambda x: of_class()))

    assert list(parallel([2, 3]).map(inner)) == [14, 21]
    assert once(lines(tmp_path / "made"))
    of_class.close()


@ALIKE
def test_a_connection_lives_from_one_batch_to_the_next(mode: str, tmp_path: Path) -> None:
    """sqlite's objects may be used, and closed, by the thread alone that has made them."""
    path, closed = str(tmp_path / "db"), tmp_path / "closed"
    sqlite3.connect(path).execute("create table rows (x)").connection.close()

    @per_worker(scope="thread")
    def connection() -> Iterator[sqlite3.Connection]:
        made = sqlite3.connect(path, timeout=30)
        yield made
        made.commit()
        made.close()
        append(closed, os.getpid())

    def insert(x: int) -> int:
        connection().execute("insert into rows values (?)", (x,)).connection.commit()
        return x

    assert parallel(range(20), partition_size=5).map(insert).count() == 20
    connection.close()
    assert once(lines(closed))
    assert len(lines(closed)) >= 1
    with sqlite3.connect(path) as here:
        assert here.execute("select count(*) from rows").fetchone() == (20,)
    here.close()


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match=r"per_worker\(\) needs a function without arguments, got 3"):
        per_worker(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"cannot be called so .*functools.partial"):
        per_worker(lambda x: x)  # type: ignore[call-overload,misc]
    with pytest.raises(ValueError, match='scope must be "process" or "thread", got \'worker\''):
        per_worker(scope="worker")  # type: ignore[call-overload]


@pytest.mark.usefixtures("inline")
def test_factories_that_do_not_make_one() -> None:
    @per_worker
    def nothing() -> Iterator[int]:
        yield from ()

    @per_worker
    def circle() -> Any:
        return circle()

    with pytest.raises(RuntimeError, match=r"the factory of per_worker\(nothing\) has not yielded anything"):
        list(parallel([1]).map(lambda x: nothing()))
    with pytest.raises(RuntimeError, match="needs the object that it is to make"):
        list(parallel([1]).map(lambda x: circle()))


def test_it_ends_with_an_inline_connection_and_the_script_s_own_does_not(tmp_path: Path) -> None:
    mine, theirs = noting(tmp_path / "mine"), noting(tmp_path / "theirs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    with connect("inline"):
        assert mine() == 7
        assert list(parallel([1, 2]).map(lambda x: x * theirs() * mine())) == [49, 98]
        assert lines(tmp_path / "theirs" / "ended") == []
    assert lines(tmp_path / "theirs" / "ended") == [f"{os.getpid()}"]
    assert lines(tmp_path / "mine" / "ended") == []
    mine.close()
    assert lines(tmp_path / "mine" / "ended") == [f"{os.getpid()}"]


def test_threads_share_one_or_have_one_each(tmp_path: Path) -> None:
    shared, together = noting(tmp_path, seconds=0.2), threading.Barrier(4)

    @per_worker(scope="thread")
    def own() -> Iterator[int]:
        me = threading.get_ident()
        append(tmp_path / "own", me)
        yield me
        append(tmp_path / "ended own", threading.get_ident())

    def use(x: int) -> bool:
        time.sleep(0.1)
        return shared() == 7 and own() == threading.get_ident()

    with connect(n_workers=1, threads_per_worker=4):
        for _ in range(2):
            assert all(parallel(range(12), partition_size=1).map(use))
    assert len(lines(tmp_path / "made")) == len(lines(tmp_path / "ended")) == 1
    assert once(lines(tmp_path / "own"))
    assert 1 < len(lines(tmp_path / "own")) <= 4
    assert sorted(lines(tmp_path / "own")) == sorted(lines(tmp_path / "ended own")), "each in its own thread"
    together.abort()


@ALIKE
def test_a_factory_that_ends_its_process_is_named(mode: str) -> None:
    @per_worker
    def model() -> int:
        os._exit(3)

    with pytest.raises(WorkerSetupError, match=r"ended with exit code 3 while it ran the factory of per_w"):
        list(parallel([1, 2], timeout=30, on_error="skip").map(lambda x: model()))


def test_a_process_beside_a_worker_waits_minutes_where_it_has_one() -> None:
    process = subworker.pool._take()
    try:
        assert process.patience == subworker.IDLE_SECONDS / 2
        process.keeps = True
        assert process.patience == subworker.KEEPING_SECONDS / 2 >= 120
    finally:
        process.end()
        subworker.pool.close()


ENDS = """
    import os, signal, sys, time
    from pathlib import Path
    from parcoll import connect, parallel, per_worker

    folder = Path(__file__).parent

    @per_worker
    def number():
        (folder / f"made-{os.getpid()}").touch()
        yield 7
        (folder / f"ended-{os.getpid()}").touch()

    def endless(x):
        number()
        while True:
            time.sleep(0.01)

    settings = {"timeout": 60} if "timeout" in sys.argv else {}
    where = sys.argv[1] if sys.argv[1] != "local" else None
    with connect(where, **({} if where else {"n_workers": 2})):
        assert parallel(range(10**9), **settings).map(lambda x: number() + x).take(3) == [7, 8, 9]
        if "interrupt" in sys.argv:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            try:
                list(parallel(range(2), **settings).map(endless))
            except KeyboardInterrupt:
                print("interrupted")
        if "kill" in sys.argv:
            os.kill(os.getpid(), 9)
    ended = {path.name[6:] for path in folder.glob("ended-*")}
    print(ended == {path.name[5:] for path in folder.glob("made-*")}, len(ended) > 0)
"""


@pytest.mark.parametrize("how", ["interrupt", "timeout interrupt"])
def test_what_follows_yield_has_run_when_the_connection_is_closed(scripts: Scripts, how: str) -> None:
    out, _ = scripts.run(scripts.write("script.py", ENDS), "local", *how.split())
    assert out.splitlines()[-1] == "True True"


@pytest.mark.parametrize("mode", ["bare"], indirect=True)
@pytest.mark.parametrize("how", ["take", "kill", pytest.param("timeout kill", marks=pytest.mark.slow)])
def test_on_a_remote_cluster_it_ends_when_the_client_leaves(
    scripts: Scripts, mode: str, how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from parcoll.connecting import current

    address = current.engine_for(None).address
    script = scripts.write("script.py", ENDS)
    code = -9 if "kill" in how else 0
    scripts.run(script, address, *how.split(), code=code)
    made = {path.name[5:] for path in scripts.folder.glob("made-*")}
    assert made
    assert eventually(lambda: {path.name[6:] for path in scripts.folder.glob("ended-*")} == made)


MODULE = """
    import os
    from pathlib import Path
    from parcoll import per_worker

    class Table:
        @per_worker
        def model():
            Path(__file__).with_name(f"{__name__}-made-{os.getpid()}").touch()
            yield __name__
            Path(__file__).with_name(f"{__name__}-ended-{os.getpid()}").touch()

    model = per_worker(lambda: [__name__])

    def use(x):
        return Table.model(), *model()
"""


def test_two_modules_with_equal_names_are_two(scripts: Scripts) -> None:
    """A module's own functions find the same object as those that get the handle from the script."""
    scripts.write("one.py", MODULE)
    scripts.write("two.py", MODULE)
    text = """
        import os
        from pathlib import Path
        import one, two
        from parcoll import connect, parallel

        held = one.Table.model
        folder = Path(__file__).parent
        with connect(n_workers=1):
            print(list(parallel([1]).map(lambda x: (one.use(x), two.use(x), held() is one.Table.model()))))
            for _ in range(2):
                print(parallel([1]).map(two.use).first())
            held.close()
            print(len(list(folder.glob("one-ended-*"))), len(list(folder.glob("two-ended-*"))))
        print(len(list(folder.glob("one-made-*"))), len(list(folder.glob("two-ended-*"))))
    """
    assert scripts.run_file(text).splitlines() == [
        "[(('one', 'one'), ('two', 'two'), True)]",
        *["('two', 'two')"] * 2,
        "1 0",
        "1 1",
    ]


def test_what_is_defined_again_is_made_anew_and_the_earlier_one_ends(scripts: Scripts) -> None:
    """As in a notebook, whose cell is run again."""
    text = """
        import os
        from pathlib import Path
        from parcoll import connect, parallel, per_worker

        folder, version = Path(__file__).parent, 1
        cell = '''
        @per_worker
        def model():
            yield version
            (folder / f"ended-{os.getpid()}").touch()
        '''.replace("        ", "")
        with connect(n_workers=1):
            exec(cell)
            print(parallel([1]).map(lambda x: model()).first())
            version = 2
            print(parallel([1]).map(lambda x: model()).first())
            exec(cell)
            print(parallel([1]).map(lambda x: model()).first(), len(list(folder.glob("ended-*"))))
    """
    assert scripts.run_file(text).splitlines() == ["1", "1", "2 1"]


def test_a_checkpoint_compares_the_factory(scripts: Scripts) -> None:
    text = """
        from parcoll import CheckpointError, connect, parallel, per_worker

        @per_worker
        def model():
            return NUMBER

        with connect("inline"):
            try:
                print(list(parallel([1, 2], checkpoint="saved").map(lambda x: x * model())))
            except CheckpointError as error:
                print(error)
    """
    for _ in range(2):
        assert scripts.run_file(text.replace("NUMBER", "7")) == "[7, 14]\n"
    assert "the global 'model' of step 1, map(lambda), has changed" in scripts.run_file(
        text.replace("NUMBER", "8")
    )


@ALIKE
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_has_its_own_and_does_not_end_that_of_its_parent(mode: str, tmp_path: Path) -> None:
    number = noting(tmp_path)

    def fork(x: int) -> int:
        number()
        pid = os.fork()
        if not pid:
            code = 5
            try:
                code = 0 if number() == 7 else 6
            finally:
                sys.exit(code) if code == 6 else os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert parallel([1]).map(fork).first() == 0
    assert lines(tmp_path / "ended") == []
    assert once(lines(tmp_path / "made"))
    number.close()
    assert len(lines(tmp_path / "ended")) == 1


def test_an_element_error_may_hold_one() -> None:
    """It is an object as any other."""
    error = ElementError("map(f)", 0, 0, per_worker(lambda: 1), ValueError(), 1, None)
    assert isinstance(error.element, PerWorker)
