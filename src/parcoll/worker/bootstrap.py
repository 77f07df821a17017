"""Bootstrap: a plugin that brings parcoll's source text to workers which have no parcoll, or another one.

The plugin travels as text, since a worker cannot unpickle a class of a package that it lacks. So all of this
module but the client's functions needs only the standard library and distributed.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import RescheduleMsg

ASKED_AFTER = 0.3  # seconds

# Run by `eval` where the plugin arrives: executes this module's text and makes the plugin.
_MAKE = "exec(compile(text, 'parcoll/worker/bootstrap.py', 'exec'), names) or names['Bootstrap'](*arguments)"


def ask_again(worker: Any, key: Any, start: str, finish: str) -> None:
    """Have the scheduler give out again a task that it gave this worker, and that the worker forgets.

    It may be fetching a result from another worker that dies. The scheduler then has it make the result anew.
    When it drops any task that has needed this result, dask's worker takes the result for one that nobody
    needs any more, though the scheduler waits for it for ever. `tests/dask_facts` fails when that changes.
    Waits a moment, since the scheduler itself may have taken the task back, or give it out again.
    """
    if (start, finish) == ("resumed", "released"):
        worker.loop.call_later(ASKED_AFTER, _ask_again, worker, key)


def _ask_again(worker: Any, key: Any) -> None:
    known = worker.state.tasks.get(key)
    if (
        known is None or known.state == "cancelled"
    ):  # the scheduler leaves alone what it gave to another worker
        worker.batched_send(RescheduleMsg(key=key, stimulus_id=f"parcoll-forgotten-{time.time()}").to_dict())


class Bootstrap(WorkerPlugin):
    """Has a worker import parcoll as its client has it, when the worker starts or the client connects."""

    name = "parcoll"

    def __init__(
        self, text: str, installer: str, sources: Mapping[str, tuple[bool, str, str]], python: tuple[int, int]
    ) -> None:
        self.text = text  # of this module
        self.installer = installer  # text of `parcoll.wire.modules`
        self.sources = sources
        self.python = python

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Ask for a task that the worker was to run, and forgets."""
        ask_again(self._worker, key, start, finish)
        if self._watch is not None:
            self._watch.transition(key, start, finish)

    def setup(self, worker: Any) -> None:
        """Install the sources, unless the worker has the very same ones."""
        self._worker, self._watch = worker, None
        if sys.version_info[:2] != self.python:
            return  # each task raises an error that says so
        names: dict[str, Any] = {"__name__": "parcoll_bootstrap"}
        exec(compile(self.installer, "parcoll/wire/modules.py", "exec"), names)
        sys.modules["parcoll_bootstrap"] = type(sys)("parcoll_bootstrap")  # dataclasses and pickle look there
        names["install"](self.sources)
        from parcoll.calls import objects  # lazy: it may have come just now
        from parcoll.clock import steady_loop_of_dask  # lazy: as above
        from parcoll.system import leave_sigterm_to_forks  # lazy: as above
        from parcoll.worker.outcome import Watch  # lazy: as above

        steady_loop_of_dask(worker.loop)
        leave_sigterm_to_forks()
        self._watch = Watch(worker)
        objects.worker_here = weakref.ref(worker)

    def teardown(self, worker: Any) -> None:
        """End the objects that functions have made in this process: the worker ends."""
        if self._watch is not None:
            from parcoll.calls import objects  # lazy: as above

            # Not in a coroutine, which dask may cancel in the middle of its end.
            objects.end_in_threads()

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.text, self.installer, self.sources, self.python)
        names: dict[str, Any] = {"__name__": "parcoll_bootstrap"}
        return eval, (_MAKE, {"text": self.text, "names": names, "arguments": arguments})


@functools.cache
def bootstrap() -> Bootstrap:
    """Return the plugin, with the sources of this process's parcoll (0.2 MB)."""
    # This module's text also runs where there is no parcoll.
    import parcoll  # lazy: see above
    from parcoll.wire import modules  # lazy: see above
    from parcoll.wire.own_modules import package_sources  # lazy: see above

    here = sys.modules[__name__]
    (folder,) = map(Path, parcoll.__path__)
    # Plain tuples: their own class is one of those that a worker lacks.
    sources = {name: source[:] for name, source in package_sources("parcoll", [folder]).items()}
    return Bootstrap(inspect.getsource(here), inspect.getsource(modules), sources, sys.version_info[:2])
