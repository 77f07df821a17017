"""What travels arrives as it was, and changes nothing where it arrives."""

from __future__ import annotations

import array
import ctypes
import functools
import importlib
import pickle
import subprocess
import sys
import types
import weakref

import cloudpickle
import numpy as np
import pytest
from cloudpickle import cloudpickle as internals

from parcoll import SerializationError, parallel
from parcoll.checkpoint.saved import loads_saved
from parcoll.wire.codec import Steady, dumps, loads
from parcoll.wire.payload import Packed, pickled
from parcoll.wire.reducers import NO_FILE


def local_class():
    """Return a class that no module has, so that it is pickled by value."""

    class Counted:
        seen = 0

        def __init__(self, number):
            self.number = number

    return Counted


def test_a_class_that_is_here_already_stays_as_it_is():
    kind = local_class()
    pickled = dumps(kind(1))
    kind.seen = 5
    copy = loads(pickled)
    assert (type(copy), copy.number, kind.seen) == (kind, 1, 5)


def test_a_class_is_set_to_what_was_sent_where_that_is_asked_for():
    kind = local_class()
    pickled = dumps(kind)
    kind.seen = 5
    assert loads(pickled, refresh_classes=True) is kind
    assert kind.seen == 0


def test_results_leave_their_class_in_the_caller_alone(cluster):
    kind = local_class()
    for made in parallel(range(6), partition_size=1).map(kind):
        kind.seen += made.number
    assert kind.seen == 15


def test_partitions_leave_their_class_in_the_worker_alone(cluster):
    kind = local_class()

    def seen(one):
        import builtins

        builtins.kept_by_a_test = type(one)  # else the class goes with the last of its partition
        type(one).seen += 1
        return type(one).seen

    counts = list(parallel([kind(n) for n in range(20)], partition_size=2).map(seen))
    assert max(counts) >= 10, "with two workers, one of them has counted ten elements or more"


def test_cloudpickle_still_calls_what_the_loader_looks_for():
    pickled = dumps(local_class()(1))
    for name in ("_class_setstate", "_make_skeleton_class"):
        assert name.encode() in pickled, f"cloudpickle no longer pickles classes through {name}"
        assert callable(getattr(internals, name))
    kind = local_class()
    dumps(kind)
    assert kind in internals._DYNAMIC_CLASS_TRACKER_BY_ID.values()


def test_what_another_process_saved_is_of_this_ones_classes(monkeypatch):
    """The classes of `__main__` go by value, with an id of the process that pickled them."""
    code = """
import enum, dataclasses, sys
from parcoll.wire.codec import dumps
@dataclasses.dataclass
class Point:
    x: int
class Colour(enum.Enum):
    RED = 1
class Outer:
    class Point:
        def inner(self):
            return "inner"
sys.stdout.buffer.write(dumps([Point(3), Colour.RED, Outer.Point()]))
"""
    saved = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    main = types.ModuleType("__main__")
    exec(code.rpartition("\n")[0].rpartition("\n")[0], vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    point, colour, inner = loads_saved(saved)
    assert type(point) is main.Point
    assert point == main.Point(3)
    assert colour is main.Colour.RED
    assert type(inner) is not main.Point  # though it has the name
    assert inner.inner() == "inner"
    del main.Point, main.Colour
    point, colour, _ = loads_saved(saved)
    assert (type(point).__name__, point.x, colour.name) == ("Point", 3, "RED")


def test_a_module_registered_with_cloudpickle_goes_by_value(tmp_path, monkeypatch):
    (tmp_path / "by_value_module.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("by_value_module")
    assert b"double" in Packed.pack(module.double).head
    cloudpickle.register_pickle_by_value(module)
    try:
        packed = Packed.pack(module.double)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "by_value_module")
    (tmp_path / "by_value_module.py").unlink()
    assert packed.load()(4) == 8


@pytest.mark.parametrize("nbytes", [10, 100_000])
def test_an_array_may_be_used_again_by_whoever_gave_it(nbytes):
    array = np.zeros(nbytes, dtype=np.uint8)
    packed = Packed.pack([array])
    array[:] = 1
    (copy,) = packed.load()
    assert not copy.any()
    copy[:] = 2
    assert not packed.load()[0].any(), "each load gives arrays of their own"


def test_a_generator_may_yield_one_buffer_again_and_again(cluster):
    def frames():
        buffer = np.empty(200_000, dtype=np.int64)
        for number in range(30):
            buffer[:] = number
            yield buffer

    ends = list(parallel(frames, partition_size=1).map(lambda frame: (int(frame[0]), int(frame[-1]))))
    assert ends == [(number, number) for number in range(30)]


def test_large_buffers_travel_beside_the_pickle():
    packed = Packed.pack([np.zeros(1_000_000), np.zeros(10)])
    assert [len(buffer) for buffer in packed.buffers] == [8_000_000]
    assert len(packed.head) < 2000
    again = pickle.loads(pickle.dumps(packed))
    assert (again.head, [bytes(b) for b in again.buffers]) == (packed.head, list(packed.buffers))


@pytest.mark.parametrize("make", [lambda: np.arange(12.0).reshape(3, 4).T[::2], lambda: np.zeros((0, 3))])
def test_arrays_of_any_layout_arrive_equal(make, cluster):
    (copy,) = parallel([make()]).map(lambda array: array)
    assert np.array_equal(copy, make())
    assert copy.flags.writeable


def test_a_function_may_use_a_collection(cluster):
    evens = parallel(range(10)).filter(lambda x: x % 2 == 0)
    assert list(parallel([1, 2]).map(lambda n: evens.map(lambda x: x * n).take(2))) == [[0, 2], [0, 4]]


def test_a_function_s_traceback_names_its_file(cluster):
    """Newer releases of cloudpickle leave the name of the file out, and with it the lines of a traceback."""
    parts = internals._code_reduce((lambda: 1).__code__)[1]
    assert parts.count(NO_FILE) + parts.count(__file__) == 1
    assert loads(dumps(lambda: 1)).__code__.co_filename == __file__
    with pytest.raises(ZeroDivisionError) as raised:
        list(parallel([0]).map(lambda x: 1 / x))
    assert str(raised.traceback[-1].path) == __file__


def shown_classes():
    """Return classes that no module has, so that they are pickled by value."""

    class Shown:
        def __init__(self, n):
            self.n = n

        @functools.singledispatchmethod
        def show(self, x):
            return "object", self.n

        @show.register
        def _(self, x: int):
            return "int", self.n

    class More(Shown): ...

    return Shown, More


def test_a_dispatching_method_that_was_used_travels_with_its_object(cluster):
    """Since Python 3.13 it remembers its objects by weak references."""
    Shown, More = shown_classes()
    shown, more = Shown(3), More(4)
    assert (shown.show(1), more.show("a")) == (("int", 3), ("object", 4))
    right = [("int", 3), ("object", 3)]
    assert list(parallel([1, "a"]).map(lambda x: shown.show(x))) == right
    assert list(parallel([1, "a"], timeout=60).map(shown.show)) == right
    assert list(parallel([shown, more]).map(lambda element: element.show(None))) == [
        ("object", 3),
        ("object", 4),
    ]


def test_a_weak_dictionary_is_refused_since_what_it_holds_would_be_gone(cluster):
    key = shown_classes()[0](1)
    weak = weakref.WeakKeyDictionary({key: 1})
    with pytest.raises(SerializationError, match="it uses weak"):
        list(parallel([1]).map(lambda x: len(weak)))


def test_functions_that_have_a_variable_in_common_have_it_on_workers(cluster):
    def counter():
        count = 0

        def add():
            nonlocal count
            count += 1

        def get():
            return count

        return add, get

    add, get = counter()

    def use(_):
        before = get()
        add()
        return get() - before

    assert list(parallel([1]).map(use)) == [1]
    assert list(parallel([1], timeout=60).map(use)) == [1]
    bound = types.SimpleNamespace(add=add, get=get)
    (other,) = parallel([bound]).map(lambda x: (x.add(), x.get())[1])
    assert other == get() + 1


def test_classes_of_elements_go_once_and_beside_them_where_they_are_large():
    """As what each was when the first element of it went; the base of two is not in the pickles of both."""

    def classes():
        class Base:
            text = "x" * 100_000
            limit = 1

        class One(Base): ...

        class Two(Base): ...

        return Base, One, Two

    base, one, two = classes()
    steady = Steady()
    first = pickled([one()], steady.by_value)
    base.limit = 2
    again = pickled([two(), one(), two()], steady.by_value)
    assert [len(parts) for parts in (first, again)] == [2, 2]
    assert all(len(parts[0]) < 5_000 and len(parts[1]) < 110_000 for parts in (first, again))
    assert again[1].tobytes() == first[1].tobytes()
    for kind in (base, one, two):  # as a process has them that has none of them
        number = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.pop(kind)
        del internals._DYNAMIC_CLASS_TRACKER_BY_ID[number]
    here = Packed(*again).load()
    assert [type(element).__name__ for element in here] == ["Two", "One", "Two"]
    assert {type(element).__base__ for element in here} == {type(here[0]).__base__} != {base}
    assert [element.limit for element in here] == [1, 1, 1]


def test_views_are_of_what_they_were(cluster):
    """And not of bytes: their elements are others."""
    numbers = memoryview(array.array("i", [1, 2, 300]))
    table = memoryview(bytes(range(6))).cast("B", (2, 3))
    views = [numbers, numbers[::2], memoryview(b"abc"), memoryview(bytearray(b"ab")), memoryview(b""), table]

    def look(view):
        return type(view), view.tolist(), view.format, view.shape, view.readonly

    assert list(parallel(views).map(look)) == list(map(look, views))
    assert [look(view) for view in parallel(views).map(lambda view: view)] == list(map(look, views))
    assert list(parallel([0, 2]).map(lambda at: numbers[at])) == [1, 300]
    assert look(loads(dumps(memoryview(Pair(1, 2.5))))) == (
        memoryview,
        [*bytes(Pair(1, 2.5))],
        "B",
        (16,),
        False,
    )


class Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_double))


TOLD = ("version_info", "float_info", "hash_info", "int_info", "thread_info", "flags")


@pytest.mark.parametrize("name", TOLD)
def test_what_sys_tells(cluster, name, monkeypatch):
    """No other object of these classes can be made, and their name means an object."""
    told = getattr(sys, name)
    first, second = told[:2]
    assert list(parallel([told]).map(lambda one: (type(one).__name__, one[0], told[1]))) == [
        (name, first, second)
    ]
    arrived = next(iter(parallel([1]).map(lambda _: getattr(sys, name))))
    assert type(arrived).__name__ == name
    assert arrived == told or name == "flags"  # a worker has some of its own
    assert loads(dumps(told)) is told
    sent = dumps(told)
    monkeypatch.setattr(sys, name, None)
    other = loads(sent)
    assert (other, [getattr(other, field) for field in type(told).__match_args__]) == (told, [*told])
