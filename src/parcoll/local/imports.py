"""Imports: distributed without numpy, in 0.45 s instead of 0.6, and out of reach of Ctrl-C."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from parcoll.local.shutdown import refuse_at_end, registering_late

LEFT_OUT = "numpy"


class _Absent(MetaPathFinder):
    """Hides numpy from the thread that made it; other threads find numpy."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == LEFT_OUT and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import without garbage collections, and without numpy unless that is loaded already.

    An import makes hardly any garbage, and collections look through all that it made, again and again.

    While distributed is imported, it asks for numpy in one place, to allocate memory that is not zeroed for
    what it receives (`distributed.protocol.utils.host_array`), and it can do without. Everything else in it
    asks for numpy when the first array comes. `tests/dask_facts` fails when that changes.
    """
    finder = _Absent()
    sys.meta_path.insert(0, finder)
    try:
        with without_collections():
            yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage. A callback of the collector's that evaluates would find modules half done."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def import_whole(*names: str, lean: bool = False) -> None:
    """Import modules in a thread of their own, out of reach of Ctrl-C, which then only ends the wait.

    An interrupted import leaves modules half done, and each later import of them fails. At a prompt or in a
    notebook no evaluation would work any more.
    """
    if all(name in sys.modules and not _is_under_way(sys.modules[name]) for name in names):
        return
    refuse_at_end()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with registering_late(), lean_imports() if lean else without_collections():
                for name in names:
                    importlib.import_module(name)
        except BaseException as error:
            errors.append(error)

    if threading.current_thread() is threading.main_thread():
        thread = threading.Thread(target=work, name="parcoll-import", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this process may have no more threads
            work()
        else:
            thread.join()
    else:  # signals interrupt the main thread only
        work()
    if errors:
        raise errors[0]


def _is_under_way(module: ModuleType) -> bool:
    """Tell whether a thread is importing the module, which is in `sys.modules` from the start."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
