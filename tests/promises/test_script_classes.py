"""A function finds in a worker's `__main__` what the script has; classes are as the script made them."""

from __future__ import annotations

import ctypes
import os
import tempfile
from typing import Any

import pytest
from script_texts import CLASSES, NAMES, PLUGINS, WORLD
from scripts import Scripts, lines
from ways import One

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")

TEXTS = {
    "world": (WORLD, "33 questions\n"),
    "classes": (CLASSES, "40 questions\n"),
    "names": (NAMES, "39 questions\n"),
}


def asked(scripts: Scripts, name: str, *arguments: str, stdin: bool = False, **env: str) -> tuple[str, str]:
    """Run one of the scripts; return what it tells, which ends with how much it has asked."""
    text, _ = TEXTS[name]
    scripts.write("plugins.py", PLUGINS)
    script = scripts.write("script.py", text)
    given = arguments or ("-" if stdin else str(script),)
    # A fork server listens on a socket there, whose path must not be longer than 107 bytes.
    process = scripts.start(*given, stdin=-1, env=env | {"TMPDIR": tempfile.gettempdir()})
    out, err = process.communicate(text if stdin else None, timeout=120)
    assert process.returncode == 0, out + err
    if name == "world":
        assert lines(scripts.folder / "runs") == ["run"]
    return out, err


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("way", ["file", "timeout", "-c", "-m", "stdin"])
def test_a_function_finds_what_the_script_has(scripts: Scripts, way: str, name: str) -> None:
    arguments = {"-c": ("-c", TEXTS[name][0]), "-m": ("-m", "script")}.get(way, ())
    env = {"PROBE_TIMEOUT": "1"} if way == "timeout" else {}
    told = asked(scripts, name, *arguments, stdin=way == "stdin", **env)
    assert told == (TEXTS[name][1], "")


def test_a_notebook_s_kernel_has_them(scripts: Scripts) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    scripts.write("plugins.py", PLUGINS)
    for name, (text, _) in TEXTS.items():
        scripts.write(f"{name}.py", text)
    notebook = """
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel()
        def show(message):
            if message["msg_type"] in ("stream", "error"):
                print(message["content"].get("text") or message["content"]["evalue"], end="")
        for name in ("world", "classes", "names"):
            client.execute_interactive(open(name + ".py").read(), timeout=100, output_hook=show)
        client.stop_channels()
        manager.shutdown_kernel()
    """
    script = scripts.write("notebook.py", notebook)
    process = scripts.start(script, env={"TMPDIR": tempfile.gettempdir()})  # as above
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in err, err
    assert out == "".join(expected for _, expected in TEXTS.values()), err


def test_what_no_function_names_is_not_sent_where_it_is_large(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        from parcoll import connect, parallel
        unused = bytearray(300 * 2**20)
        rows = [bytes(1000) for _ in range(200_000)]
        with connect(n_workers=2) as connection:
            list(parallel(range(10)).map(lambda x: x + 1))
            from parcoll.world.namespace import of_main
            assert len(of_main()) < 20_000, len(of_main())
            for _ in range(5):
                assert list(parallel(range(10)).map(lambda x: x + 1)) == list(range(1, 11))
            # What one names is there, and what one finds by text is told as what it is.
            assert list(parallel([1]).map(lambda x: len(unused))) == [300 * 2**20]
            (found,) = parallel([1]).map(lambda x: "rows" in globals())
            assert not found
        print("done")
        """
    )
    assert out == "done\n"


def test_a_module_that_a_script_imports_is_imported_where_it_is_used(scripts: Scripts) -> None:
    scripts.write(
        "heavy.py", "import os\nopen('loaded', 'a').write(f'{os.getpid()}\\n')\ndef work(x): return x + 1\n"
    )
    out = scripts.run_file(
        """
        import os, heavy
        from heavy import work
        from parcoll import connect, parallel
        def uses(x): return work(heavy.work(x))
        with connect(n_workers=2):
            assert list(parallel(range(4), partition_size=1).map(lambda x: x * 2)) == [0, 2, 4, 6]
            print(len(open("loaded").readlines()))
            assert list(parallel(["uses"]).map(lambda name: globals()[name](1))) == [3]
            print(len(open("loaded").readlines()))
        """
    )
    assert out == "1\n2\n"


def test_a_class_that_a_worker_has_made_stays_as_it_is_there(scripts: Scripts) -> None:
    """Also where an error has an object of it, which is unpickled there to see whether it can be."""
    out = scripts.run_file(
        """
        import sys
        from parcoll import connect, parallel
        def raises(x):
            if not hasattr(sys, "made"):
                class Held:
                    kept = {"a": [x]}
                sys.made = Held, Held.kept
            error = ValueError(x)
            error.held = sys.made[0]()
            raise error
        with connect(n_workers=1):
            for timeout in (None, 30):
                chain = parallel([1, 2], on_error="skip", timeout=timeout).map(raises)
                assert list(chain) == [] and len(chain.errors) == 2
                is_same = lambda x: sys.made[0].kept is sys.made[1]
                print(parallel([1], timeout=timeout).map(is_same).first())
        """
    )
    assert out == "True\nTrue\n"


def test_subclasses_are_found_that_nothing_names(scripts: Scripts) -> None:
    """A registry that asks for `__subclasses__`, in the script or in a module of its own."""
    scripts.write(
        "plugin_base.py",
        """
        class Base:
            @classmethod
            def names(cls):
                return sorted(kind.__name__ for kind in cls.__subclasses__())
        """,
    )
    out = scripts.run_file(
        """
        from parcoll import connect, parallel
        from plugin_base import Base
        class Plugin: ...
        class First(Plugin): ...
        class Second(First): ...
        class Csv(Base): ...
        def below(kind):
            return [name for one in kind.__subclasses__() for name in (one.__name__, *below(one))]
        def look(_):
            return below(Plugin), Base.names()
        with connect(n_workers=1):
            for timeout in (None, 30):
                assert list(parallel([1], timeout=timeout).map(look)) == [look(1)]
            class Third(Plugin): ...
            class Json(Base): ...
            for timeout in (None, 30):
                assert list(parallel([1], timeout=timeout).map(look)) == [look(1)]
        print(look(1))
        """
    )
    assert out == "(['First', 'Second', 'Third'], ['Csv', 'Json'])\n"


@pytest.mark.parametrize("options", ["", "timeout=30"])
def test_a_worker_that_comes_later_has_the_classes_that_the_evaluation_began_with(
    scripts: Scripts, options: str
) -> None:
    """Its first elements were pickled when the script had changed their class."""
    out = scripts.run_file(
        f"""
        import os, signal
        from parcoll import connect, parallel

        class Setting:
            limit = 1

        class Inner(Setting): ...

        with connect(n_workers=1):
            settings = parallel([Inner()] * 8, partition_size=1, buffersize=2, {options})
            stream = iter(settings.map(lambda s: (s.limit, os.getpid())))
            found = [next(stream)]
            Setting.limit = 2
            os.kill(found[0][1], signal.SIGKILL)
            found += stream
            print([limit for limit, _ in found], len({{process for _, process in found}}))
            print(list(parallel([Inner()] * 3, {options}).map(lambda s: s.limit)))
        """
    )
    assert out == "[1, 1, 1, 1, 1, 1, 1, 1] 2\n[2, 2, 2]\n"


def test_a_class_has_what_its_bases_without_a_name_have_now(scripts: Scripts) -> None:
    """What the script has of a class is pickled again where these have changed, or its metaclass."""
    out = scripts.run_file(
        """
        from parcoll import connect, parallel
        def made():
            class Meta(type):
                level = 1
            class Base(metaclass=Meta):
                limit = 1
            class Low(Base): ...
            return Low
        Low = made()
        def look(low):
            by_text = globals()["Low"]
            return low.limit, type(low).level, by_text.limit, by_text.level
        with connect(n_workers=1):
            for timeout in (None, 30):
                for number in (1, 2):
                    Low.__bases__[0].limit = type(Low).level = number
                    print(*parallel([Low()], timeout=timeout).map(look))
        """
    )
    assert out == "(1, 1, 1, 1)\n(2, 2, 2, 2)\n" * 2


def test_classes_that_refer_to_themselves_are_found_by_text(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        from parcoll import connect, parallel
        class Node:
            limit = 1
        Node.own = Node
        class Parent:
            limit = 1
        class Child:
            parent, limit = Parent, 1
        Parent.child = Child
        def made():
            class Local:
                limit = 1
            Local.own = Local
            return Local
        Found = made()
        names = ("Node", "Parent", "Child", "Found")
        with connect(n_workers=1):
            for number in (1, 2):
                for name in names:
                    globals()[name].limit = number
                print(*parallel(names).map(lambda name: globals()[name].limit))
        """
    )
    assert out == "1 1 1 1\n2 2 2 2\n"


def test_an_object_that_is_all_its_name_has_what_the_script_has_set(scripts: Scripts) -> None:
    """One whose `__reduce__` returns the name: it is one object everywhere, and may change all the same."""
    out = scripts.run_file(
        """
        import typing
        from parcoll import connect, parallel
        class Setting:
            def __reduce__(self):
                return "SETTING"
        SETTING = Setting()
        SETTING.first = 0
        Number = typing.NewType("Number", int)
        def look(setting):
            return setting is SETTING, sorted(vars(setting).items()), Number.__name__, Number(3)
        with connect(n_workers=1):
            for timeout in (None, 30):
                for number in (1, 2):
                    SETTING.limit = number
                    vars(SETTING).pop("first", None)
                    assert list(parallel([SETTING] * 3, timeout=timeout).map(look)) == [look(SETTING)] * 3
        print("done")
        """
    )
    assert out == "done\n"


def test_what_the_script_has_set_in_a_class_more_than_once_is_seen(scripts: Scripts) -> None:
    """A new value may lie where the last one lay. What is changed in place is the same object."""
    out = scripts.run_file(
        """
        from collections import namedtuple
        from dataclasses import dataclass
        from parcoll import connect, parallel
        class whole_descriptor:
            def __init__(self):
                self.own = 0
            def __get__(self, instance, owner):
                return self.own
        class Meta(type):
            count = 1000
        class Settings(metaclass=Meta):
            total, __limits__, at = 0.5, {"a": 0}, whole_descriptor()
            def get(self, *, given=0):
                return given
            def low(self): ...
        @dataclass
        class Point:
            x: int
        Row = namedtuple("Row", "a b")
        def look(objects):
            settings, point, row = objects
            kind = type(settings)
            return (
                settings.total, type(kind).count, settings.__limits__["a"], settings.at, settings.get(),
                settings.low(), kind.get.__doc__, kind.get.__annotations__, type(point).__annotations__,
                type(row)(7),
            )
        with connect(n_workers=1):
            for timeout in (None, 30):
                for number in range(6):
                    for step in range(number % 3 + 1):
                        Settings.total += 1.5
                        Meta.count += 1
                        Settings.low = eval(f"lambda self: {number + step}")
                    Settings.__limits__["a"] = vars(Settings)["at"].own = number
                    Settings.get.__kwdefaults__["given"] = number
                    Settings.get.__doc__ = f"number {number}"
                    Settings.get.__annotations__["self"] = Point.__annotations__["x"] = [int, str][number % 2]
                    Row.__new__.__defaults__ = (number,)
                    objects = Settings(), Point(1), Row(1, 2)
                    (seen,) = parallel([objects], timeout=timeout).map(look)
                    assert seen == look(objects), (timeout, number, seen, look(objects))
        print("done")
        """
    )
    assert out == "done\n"


def test_classes_of_ctypes(one: One) -> None:
    """These have made their fields, which cannot be pickled, from a description that is final."""

    class Part(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("kind", ctypes.c_char), ("size", ctypes.c_int))

    class Whole(ctypes.Structure):
        _anonymous_ = ("part",)
        _fields_ = (("part", Part), ("three", ctypes.c_short * 3), ("bits", ctypes.c_uint, 3))

        def total(self) -> int:
            return int(self.size + sum(self.three))

    class More(Whole):
        _fields_ = (("more", ctypes.c_int),)

    class Either(ctypes.Union):
        _fields_ = (("number", ctypes.c_uint32), ("octets", ctypes.c_uint8 * 4))

    class Swapped(ctypes.BigEndianStructure):
        _fields_ = (("number", ctypes.c_uint16),)

    class Linked(ctypes.Structure): ...

    Linked._fields_ = [("value", ctypes.c_int), ("next", ctypes.POINTER(Linked))]
    triple, call = ctypes.c_int * 3, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    whole = Whole(Part(b"q", 7), (1, 2, 3), 5)

    def look(_: object) -> Any:
        linked = Linked(1, ctypes.pointer(Linked(2)))
        sizes = [ctypes.sizeof(kind) for kind in (Part, Whole, More, Either, Swapped, Linked)]
        fields = whole.kind, whole.total(), list(whole.three), whole.bits, More(Part(), (4, 5, 6)).total()
        called = list(triple(1, 2, 3)), linked.next.contents.value, call(lambda x: 2 * x)(4)
        swapped = Swapped.from_buffer_copy(b"\1\2").number, list(Either(258).octets)
        return sizes, fields, called, swapped, type(whole) is Whole

    for _ in range(2):
        assert one(look) == look(0)
    Whole.total = lambda self: -1  # type: ignore[method-assign]
    assert one(look) == look(0)
    back = one(lambda _: (Whole(Part(b"r", 1)), triple(4, 5)))
    assert (type(back[0]), back[0].kind, type(back[1]), list(back[1])) == (Whole, b"r", triple, [4, 5, 0])
