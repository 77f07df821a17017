"""A worker that joins late has the script's classes as all others have them, whatever changed meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from bare import bare_cluster
from scripts import Scripts, wait_for_file

from parcoll import connect
from parcoll.chain.steps import Map
from parcoll.evaluation.engine import Job
from parcoll.wire.codec import Steady
from parcoll.worker.program import Program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

KINDS = """
import contextlib, dataclasses, enum, os, pathlib, signal, typing
from parcoll import connect, parallel

class Outer:
    class In:
        limit = 1
    class Deep:
        class Er:
            limit = 1

class Family:
    class Base:
        limit = 1
    class Sub(Base): ...

def local():
    class Local:
        limit = 1
    return Local

Named = local()
registry = {"a": local()}

def holding():
    kind = local()
    return lambda: kind
held = holding()

class OfLocal(local()): ...

def local_enum():
    class Mode(enum.Enum):
        A = 1
        @property
        def limit(self):
            return getattr(type(self), "extra", 1)
    return Mode
OneMode = local_enum()

def local_record():
    @dataclasses.dataclass
    class Record:
        number: int = 0
        @property
        def limit(self):
            return 1
    return Record
OneRecord = local_record()

def local_row():
    class Row(typing.NamedTuple):
        number: int = 0
        @property
        def limit(self):
            return 1
    return Row
OneRow = local_row()

def local_meta():
    class Meta(type):
        @property
        def limit(cls):
            return 1
    return Meta
OneMeta = local_meta()
of_meta = OneMeta("OfMeta", (), {})

FACTOR = 1
def with_global():
    class WithGlobal:
        def get(self):
            return FACTOR
        limit = property(lambda self: self.get())
    return WithGlobal

class Holder:
    def __init__(self, func):
        self.func = func
    @property
    def limit(self):
        return self.func()

def with_container():
    class WithContainer:
        limits = [1]
        @property
        def limit(self):
            return self.limits[0]
    return WithContainer
Container = with_container()

def with_code():
    class WithCode:
        def get(self):
            return 1
        limit = property(lambda self: self.get())
    return WithCode
Code = with_code()

elements_alone = [local()()]

def two(self):
    return 2

def run():
    here, contained = local(), with_container()
    given = {
        "nested": Outer.In(), "nested deeper": Outer.Deep.Er(), "derived from nested": Family.Sub(),
        "named": Named(), "in a dict": registry["a"](), "captured": held()(), "derived": OfLocal(),
        "enum": OneMode.A, "dataclass": OneRecord(), "NamedTuple": OneRow(), "metaclass": of_meta,
        "global": with_global()(), "global of a function": Holder(lambda: FACTOR),
        "container": Container(), "code": Code(), "elements alone": elements_alone[0],
        "local variable": here(), "container of a local variable": contained(),
    }
    def change():
        for kind in (Outer.In, Outer.Deep.Er, Family.Base, Named, registry["a"], held(), here):
            kind.limit = 2
        OfLocal.__bases__[0].limit = OneMode.extra = 2
        for kind in (OneRecord, OneRow, OneMeta):
            kind.limit = property(two)
        globals()["FACTOR"] = 2
        Container.limits[0] = contained.limits[0] = 2
        Code.get.__code__ = two.__code__
        type(elements_alone[0]).limit = 2
    def look(objects):
        return {name: value.limit for name, value in objects.items()}, os.getpid(), os.getppid()
    address = os.environ.get("LATE_ADDRESS")
    options = {"timeout": 30} if os.environ.get("LATE_TIMEOUT") else {}
    with connect(address) if address else connect(n_workers=1):
        stream = iter(parallel([given] * 3, partition_size=1, buffersize=1, **options).map(look))
        found = [next(stream)]
        change()
        # Beside its worker, that of the function first.
        for process in found[0][1:] if options else found[0][1:2]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        pathlib.Path("killed").touch()
        found += stream
    print({name: [had[name] for had, *_ in found] for name in given
           if any(had[name] != 1 for had, *_ in found)})
    print(len(found), len({process for _, process, _ in found}))
run()
"""
ALIKE = "{}\n3 2\n"


@pytest.mark.parametrize("timeout", ["", "30"])
def test_classes_of_any_kind_are_those_that_the_evaluation_began_with(scripts: Scripts, timeout: str) -> None:
    out, err = scripts.run_with(scripts.write("script.py", KINDS), env={"LATE_TIMEOUT": timeout})
    assert (out, err) == (ALIKE, "")


@pytest.mark.parametrize("one", ["bare"])
def test_so_they_are_on_another_s_cluster(scripts: Scripts, tmp_path: Path, one: str) -> None:
    with bare_cluster(tmp_path / "cluster", 1) as cluster:
        env = {"LATE_ADDRESS": cluster.address}
        process = scripts.start(scripts.write("script.py", KINDS), env=env)
        wait_for_file(scripts.folder / "killed")
        cluster.add_worker()
        out, err = process.communicate(timeout=60)
    assert (out, err) == (ALIKE, "")


def test_so_they_are_in_a_notebook(scripts: Scripts) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    scripts.write("kinds.py", KINDS)
    notebook = """
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel()
        def show(message):
            if message["msg_type"] in ("stream", "error"):
                print(message["content"].get("text") or message["content"]["evalue"], end="")
        client.execute_interactive(open("kinds.py").read(), timeout=50, output_hook=show)
        client.stop_channels()
        manager.shutdown_kernel()
    """
    # Its path must be short: see `test_script_classes.py`.
    env = {"TMPDIR": tempfile.gettempdir()}
    out, err = scripts.run_with(scripts.write("notebook.py", notebook), env=env)
    assert "Traceback" not in err, err
    assert out == ALIKE


def test_a_class_that_goes_later_is_the_same_on_all_workers(scripts: Scripts) -> None:
    """Where a name of the script's brings it, as when the evaluation began; else as it went first."""
    out = scripts.run_file(
        """
        import os, signal
        from parcoll import connect, parallel
        class Outer:
            class In:
                limit = 1
        def local():
            class Local:
                limit = 1
            return Local
        Named = local()
        def pair():
            class First:
                limit = property(lambda self: Second.limit)
            class Second:
                limit = 1
            return First, Second
        def run():
            here, (First, Second) = local(), pair()
            later = [Outer.In(), Named(), here()]
            given = [[First()], later, later, [Second()], later]
            def look(objects):
                return [value.limit for value in objects], os.getpid()
            with connect(n_workers=1):
                stream = iter(parallel(given, partition_size=1, buffersize=1).map(look))
                found = [next(stream)]
                for limit in (2, 3):
                    Outer.In.limit = Named.limit = here.limit = Second.limit = limit
                    found.append(next(stream))
                os.kill(found[0][1], signal.SIGKILL)
                found += stream
            print(*(limits for limits, _ in found), len({process for _, process in found}))
        run()
        """
    )
    assert out == "[1] [1, 1, 2] [1, 1, 2] [1] [1, 1, 2] 2\n"


def test_what_is_packed_again_for_another_worker_has_the_same_classes() -> None:
    """Of a partition whose worker was lost when it had handed back a part."""

    class Setting:
        limit = 1

    steady = Steady()
    with connect(n_workers=1) as connection:
        engine = connection.engine
        session = engine.open(Program((Map(lambda setting: setting.limit),)), "again", keep=False)
        elements = engine.pack([Setting(), Setting()], by_value=steady.by_value)
        Setting.limit = 2
        session.submit([Job(elements, steady.by_value, size=2, begun=1)])
        while not (ended := session.completed(True)):
            pass
        session.close()
    [(_, outcome)] = ended
    assert outcome.results is not None
    assert outcome.results.load() == [1]
