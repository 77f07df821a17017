"""Codec: objects to pickled bytes and back, without what pickle and cloudpickle would lose.

Kept are the fields of built-in exceptions, what a program has changed in its classes of `__main__`, and what
`reducers` and `classes` tell of.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from parcoll import objects
from parcoll.objects import ALWAYS, ATOMS, FILLED, Known, Objects, behind_class, settled
from parcoll.ordered import Order, set_states
from parcoll.wire import memmaps, named, reducers, script
from parcoll.wire.classes import Loader, is_brought, reduced_class, set_first, set_names
from parcoll.wire.reducers import (
    REDUCED,
    WITHOUT_NAME,
    class_numbers,
    class_of_number,
    in_parts,
    names_of,
    reduced,
)

PROTOCOL = 5
LOCKS = (type(threading.Lock()), type(threading.RLock()))

# Tells of each large buffer whether it stays inside the pickle; with None all of them do.
KeepInside = Callable[[pickle.PickleBuffer], bool] | None


def by_reference(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with Python's own pickler: functions and classes go by name."""
    return dump(_ByReference, in_parts(value) if type(value) is list else value, keep_inside)


def by_value(value: object, keep_inside: KeepInside = None) -> bytes:
    """Pickle with cloudpickle: functions and classes that no module has go by value."""
    return dump(ByValue, value, keep_inside)


def dumps(value: object, limit: int | None = None) -> bytes:
    """Pickle by value, with all buffers inside the pickle; TooLargeError for more than `limit` bytes."""
    return by_value(value) if limit is None else dump(ByValue, value, None, Bounded(limit))


class TooLargeError(Exception):
    """A pickle has more bytes than there is room for."""


class Bounded(io.BytesIO):
    """A file for a pickle of bounded size, so that what is too large is not copied to its end."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, part: Any) -> int:
        self._left -= len(part)
        if self._left < 0:
            raise TooLargeError
        return super().write(part)


class Naming:
    """Pickles by value, and notes which of the script's names go with the pickle."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.funcs: list[FunctionType] = []  # the script's that go with it

    def by_value(self, value: object, keep_inside: KeepInside = None) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        pickler = _NamingPickler(file, keep_inside)
        pickler.dump(value)
        self.names |= pickler.names
        self.funcs += pickler.funcs
        return file.getvalue()


def prefers_value() -> bool:
    """Tell whether the user has asked cloudpickle to pickle some module by value."""
    return bool(cloudpickle.list_registry_pickle_by_value())


def loads(pickled: bytes, buffers: Iterable[Any] = (), refresh_classes: bool = False) -> Any:
    """Unpickle. Classes that this process already has stay as they are, unless `refresh_classes`.

    cloudpickle sends a class of `__main__` with attributes and methods, and each load sets them. This would
    undo what the program has done to the class since: in the process that defined it, and in a worker with
    every partition. So a worker sets them once for each program.
    """
    if b"_class_setstate" not in pickled:
        return pickle.loads(pickled, buffers=buffers)
    return Loader(io.BytesIO(pickled), buffers=buffers, refresh=refresh_classes).load()


def modules_in(value: object) -> tuple[set[str], list[CodeType]]:
    """Return the modules that a pickle of `value` names, and the code of functions that it has by value."""
    recorder = _Recorder(io.BytesIO(), None)
    with contextlib.suppress(Exception):  # packing the value raises the error that the user sees
        recorder.dump(value)
    return recorder.modules, recorder.codes


def dump(
    kind: type[_ByReference | ByValue], value: object, keep_inside: KeepInside, file: io.BytesIO | None = None
) -> bytes:
    file = file or io.BytesIO()
    kind(file, keep_inside).dump(value)
    return file.getvalue()


class _Reducers:
    """A pickler's dispatch table with bare objects, and without tblib's entries for built-in exceptions.

    distributed has tblib pickle all exceptions. That helps classes with an `__init__` of their own, but
    for built-in ones it loses `SystemExit.code`, `UnicodeDecodeError.object` and the like.
    """

    def __init__(self, own: Mapping[type, Any]) -> None:
        self._own = own
        self._seen: list[Any] = []
        self._made: dict[type, Any] = {}

    def of(self, table: Mapping[type, Any]) -> dict[type, Any]:
        """Return the table for one pickle; made anew (0.1 ms) only where an entry was added or changed."""
        seen = [list(part.values()) for part in getattr(table, "maps", [table])]
        if seen != self._seen:
            self._made = {
                kind: reduce
                for kind, reduce in table.items()
                if kind.__module__ != "builtins" or reduce.__module__ != "tblib.pickling_support"
            } | {object: reducers.sentinel, **self._own}
            self._seen = seen
        of_arrays = memmaps.reducers()
        return {**self._made, **of_arrays} if of_arrays else self._made


_by_reference = _Reducers({**WITHOUT_NAME, **reducers.BY_REFERENCE})
_by_value = _Reducers({**WITHOUT_NAME, **named.WITH_NAME})


class _ByReference(pickle.Pickler):
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        self.dispatch_table = _by_reference.of(copyreg.dispatch_table)
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)


_KNOWN = (*REDUCED, *named.IN_CLASSES)
# What most pickles call, and has a name.
_OURS = {settled, set_first, set_names, set_states, script.make_function, script.set_state}
_OURS |= {reducers.make_skeleton_class, reducers.set_class_state, reducers.set_function_state, behind_class}


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, with what it loses (`reducers`), and with the script's functions (`script`)."""

    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        self.dispatch_table = _by_value.of(cloudpickle.Pickler.dispatch_table)  # before it is read
        self._cells: dict[int, Any] = {}
        # No cycle may lead to a pickler in C: where the collector has freed one, the process crashed later.
        self._order = Order(set_first, set_names, self.dispatch_table, _KNOWN)
        self._kinds: dict[type, Known] = {}  # the script's that have gone
        self._usual: dict[type, int] = {}  # those of these whose objects are pickled as Python does
        program = script.current()
        kept = program.kept if program is not None and program.travelled else {}
        self._objects: Objects = kept.get("held") or kept.setdefault("held", Objects())
        super().__init__(file, PROTOCOL, buffer_callback=keep_inside)

    def reducer_override(self, value: Any) -> Any:
        """Reduce what cloudpickle would lose."""
        kind = type(value)
        if (usual := self._usual.get(kind)) is not None and (
            usual == ALWAYS
            or (
                (parts := value.__dict__) and (usual == FILLED or ATOMS.issuperset(map(type, parts.values())))
            )
        ):
            return NotImplemented
        if not issubclass(kind, REDUCED):  # not `isinstance`, which asks the object: it may raise
            if kind.__module__ == "__main__" and kind not in self.dispatch_table:
                return self._of_class_of_script(value, kind)
            of_class = self._order.depth and kind in named.IN_CLASSES
            return named.reduced_in_class(value, kind) if of_class else NotImplemented
        if kind is FunctionType and value in _OURS:
            return NotImplemented
        reduction = reduced(value) if (found := named.reduced_original(value)) is None else found
        if reduction is not NotImplemented:
            return reduction
        if issubclass(kind, type) and (found := memmaps.reduced_of_c(value)) is not None:
            return found
        made = reducers.made_modules
        reduction = reducers.reduced_of_made(self, value) if made else NotImplemented
        reduction = super().reducer_override(value) if reduction is NotImplemented else reduction
        if reduction is not NotImplemented and isinstance(value, type) and len(reduction) == 6:
            if (home := named.home_of(value)) is not None:
                return named.original, home
            return self._order.of_class(value, reduced_class(value, reduction, self._name_of(value)))
        return reduction

    def _of_class_of_script(self, value: Any, kind: type) -> Any:
        known = self._kinds.get(kind)
        if known is None:  # its class goes first, which may have it: it is made when the class is whole
            known = self._kinds[kind] = self._objects.of(kind, _script_names())
            if known.usual is not None:
                self._usual[kind] = known.usual
            return behind_class, (kind, value)
        reduction = known.reduced(value, script.named)
        if known.is_bare and not value.__dict__ and reduction is NotImplemented:
            reduction = named.reduced_mark(value, kind, _script_names(), self._objects.marks)
        if reduction is NotImplemented and known.maker is not None:
            return objects.reduced_past(value, known.maker)
        return self._of_script(value) if reduction is NotImplemented else reduction

    _of_script = staticmethod(named.reduced_by_name)

    def _name_of(self, value: Any) -> str | None:
        """Return the script's own name for a function or class, where it has one."""
        name: str = value.__name__
        return name if value.__module__ == "__main__" and _script_names().get(name) is value else None

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        """Reduce a function of the script so that it gets the globals that all of them share."""
        make, (code, names, *unset, cells), state, *rest, _ = super()._dynamic_function_reduce(func)
        if cells is not None:  # functions that have a variable in common have it there too
            cells = tuple(map(self._cells.setdefault, map(id, func.__closure__ or ()), cells))
        reduction: Any = make, (code, names, *unset, cells), state, *rest, _
        if func.__globals__ is _script_names():
            at = self._name_of(func) if cells is None else None
            self.met(func, state[1])
            reduction = script.make_function, (code, names, cells, at), state, *rest, script.set_state
        return self._order.of_function(func, objects.with_builtins(func, reduction))

    def met(self, func: FunctionType, state: dict[str, Any]) -> None:
        """Note a function of the script."""


class Steady:
    """Pickles the elements of an evaluation by value, each class as it was when one of them brought it first.

    The script may change a class of its own while the evaluation goes on. A worker keeps a class as it came
    first. So one that joins late would have another one, if it came anew with each partition.
    """

    def __init__(self) -> None:
        self._went: weakref.WeakKeyDictionary[type, _Classes] = weakref.WeakKeyDictionary()
        self.objects = Objects()

    def by_value(self, value: object, keep_inside: KeepInside = None) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        _SteadyPickler(file, keep_inside, self).dump(value)
        return file.getvalue()

    def content_of(self, kind: type) -> _Classes | None:
        """Return what a class has gone in."""
        return self._went.get(kind)

    def keep(self, kind: type) -> _Classes:
        """Pickle a class, and with it those that it consists of and that have not gone yet."""
        file = io.BytesIO()
        pickler = _SteadyPickler(file, None, self, whole=True)
        pickler.dump((kind, _Others(pickler.kinds)))
        content = _Classes(file.getvalue(), pickler.needs)
        self._went.update(dict.fromkeys(pickler.kinds, content))
        return content


class _Classes:
    """A pickle of classes: once in each that has it, and beside that where it is large."""

    def __init__(self, pickled: bytes, needs: dict[str, _Classes]) -> None:
        self._pickled = pickled
        self._needs = needs  # what others have gone in that these consist of, by their numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return _pickled_classes, (pickle.PickleBuffer(self._pickled), self._needs)


def _pickled_classes(pickled: Any, needs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return pickled, needs


class _Others:
    """The classes that were pickled before this: who unpickles them has each, whatever holds it."""

    def __init__(self, kinds: list[type]) -> None:
        self._kinds = kinds

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self._kinds),)


class _SteadyPickler(ByValue):
    def __init__(
        self, file: io.BytesIO, keep_inside: KeepInside, steady: Steady, whole: bool = False
    ) -> None:
        super().__init__(file, keep_inside)
        self._steady, self._objects = steady, steady.objects
        self._whole = whole  # classes that have not gone yet are pickled here
        self.kinds: list[type] = []
        self.needs: dict[str, _Classes] = {}

    def reducer_override(self, value: Any) -> Any:
        """Have a class that goes by value be as it went."""
        if not issubclass(type(value), type):
            return super().reducer_override(value)
        content = self._steady.content_of(value)
        if content is None:
            reduction = super().reducer_override(value)
            if reduction is NotImplemented or len(reduction) != 6:
                return reduction
            if self._whole:
                self.kinds.append(value)
                return reduction
            content = self._steady.keep(value)
        number = class_numbers[value]
        if self._whole:
            self.needs[number] = content
            return class_of_number, (number,)
        return _as_it_went, (content, number)


def _as_it_went(content: Any, number: str) -> Any:
    """Return the class of this number, which is in a pickle of its own where it is not here."""
    if is_brought(number) and (known := class_of_number(number)) is not None:
        return known
    pickled, needs = content
    held = [_as_it_went(need, other) for other, need in needs.items()]  # until what consists of them is
    held += loads(bytes(pickled))
    return held and class_of_number(number)


class _NamingPickler(ByValue):
    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        super().__init__(file, keep_inside)
        self.names: set[str] = set()
        self.funcs: list[FunctionType] = []

    def _name_of(self, value: Any) -> str | None:
        name = super()._name_of(value)
        if name is not None:
            self.names.add(name)
        return name

    def met(self, func: FunctionType, state: dict[str, Any]) -> None:
        """Note what it names."""
        self.names.update(state["__globals__"])
        self.funcs.append(func)


class ManyByReference:
    """Pickles values one after the other, with one pickler: to make one takes as long as to pickle 50."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._pickler = _ByReference(self._file, None)

    def pickled(self, value: object) -> bytes:
        """Pickle one, with all buffers inside."""
        self._file.seek(0)
        self._file.truncate()
        self._pickler.clear_memo()
        self._pickler.dump(value)
        return self._file.getvalue()


def _script_names() -> dict[str, Any]:
    return names_of(sys.modules["__main__"])


class _Recorder(ByValue):
    """A pickler that notes what its pickle refers to; the pickle itself is not used."""

    def __init__(self, file: io.BytesIO, keep_inside: KeepInside) -> None:
        super().__init__(file, keep_inside)
        self.modules: set[str] = set()
        self.codes: list[CodeType] = []

    def reducer_override(self, value: Any) -> Any:
        """Note which module a value is, or comes from; note the code of a function."""
        if isinstance(value, CodeType):
            self.codes.append(value)
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        self.modules |= {found for found in (name, type(value).__module__) if isinstance(found, str)}
        return super().reducer_override(value)
