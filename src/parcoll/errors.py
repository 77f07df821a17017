"""Exceptions that parcoll itself raises, and its logger. What your own functions raise keeps its own type."""

from __future__ import annotations

import logging
import reprlib
from dataclasses import dataclass, fields
from typing import Any


class ParcollError(Exception):
    """Base class of all exceptions that parcoll raises on its own account.

    What your own functions raise is not among them: it reaches you with its own type.
    """


class SourceConsumedError(ParcollError, RuntimeError):
    """A source that can be read only once was evaluated a second time.

    Such sources are iterators, generators and open files. To evaluate more than once, pass a list, or a
    function that returns a new iterator.
    """


class SerializationError(ParcollError, TypeError):
    """A function, a module, an element or a result cannot be sent between this process and the workers.

    The message names it, and says why. What cannot be pickled (a lock, an open file) can be made within the
    function instead. A package that a worker lacks must be installed there, or be sent along with
    `connect(..., ship=["package"])`. What is too large for a worker needs a higher `memory_limit`.
    """


class ClusterStartError(ParcollError, RuntimeError):
    """The local cluster did not start; the message says why.

    If the system or the program cannot run one, `connect` to a dask scheduler instead.
    """


class ConnectError(ParcollError, ConnectionError):
    """No dask scheduler answers at the address given, or its cluster cannot run this process's functions.

    The message says what was found there. Python must be of the same minor version on the workers, and
    distributed at least 2026.1.
    """


class CheckpointError(ParcollError, RuntimeError):
    """A checkpoint has the results of another chain or another source, or its folder cannot be used.

    The message says what has changed, or why the folder cannot be read or written. Restore what was there,
    or delete the folder to start from the first element. After a full disk, make room and start again: the
    results that were saved before are whole.
    """


class WorkerLostError(ParcollError, RuntimeError):
    """Every process that ran this element died (or its partition, if the element could not be identified).

    The message names the element, the step and the signal. Typical causes are a segfault in a library,
    `os._exit`, and more memory than `memory_limit` allows. An element that was identified has failed like
    one whose function raises, so `on_error` and `retries` apply to it.
    """


class WorkerSetupError(ParcollError, RuntimeError):
    """What parcoll itself needs on a worker could not be had there: no function has failed, and no element.

    So `on_error` and `retries` do not apply to it. Functions that run in a process beside a worker need one
    more process there, and what dask gives to tasks needs a connection to the scheduler from it.
    """


class ElementTimeoutError(ParcollError, TimeoutError):
    """A function took longer for one element than `timeout=` allows, and was stopped.

    The element has failed like one whose function raises, so `on_error` and `retries` apply to it. They do
    not apply to the function of `reduce` or `fold`: the error ends the evaluation.
    """


class ClusterLostError(ParcollError, ConnectionError):
    """The cluster was lost or closed while an evaluation needed it, and no other took its place.

    A local cluster that dies is replaced, and with `connect(address, reconnect=seconds)` an evaluation waits
    for a scheduler to come back. The error is raised without `reconnect`, if no scheduler comes back in time,
    or if what was lost cannot be made again. Connect anew and evaluate again; with `checkpoint=` the results
    so far are kept.

    Attributes:
        yielded: How many elements the evaluation had yielded before; 0 for a call that gives all or
            nothing, such as `reduce` or `take`. None if the error did not come from an evaluation.
    """

    yielded: int | None = None
    _final: bool = False  # no other cluster has, or will have, what was lost
    _still_there: bool = False  # the cluster is: only results that it kept are lost
    _which: str = ""  # names what was lost, if several evaluations may notice the same loss

    def _tell(self, what: str, yielded: int = 0) -> None:
        """Add to the message what was lost. The evaluation that met the error first calls it."""
        if self.yielded is None:
            self.yielded = yielded
            self.args = (f"{self}; {what}",)


@dataclass(eq=False)
class ElementError(ParcollError):
    """An element that failed in a step. `on_error` functions get it, and `ParallelGen.errors` lists it.

    Attributes:
        step: The step as it was written, for example `map(parse)`.
        step_index: The position of the step in the chain, from 0.
        index: The position of the source element, from 0; if the source is a bag, within `partition`. Of
            `read_text` and its like the source elements are files, or parts of them.
        element: The element that the step got. In `errors` it is a text, the element's `repr` cut at 200
            characters, if it could not be pickled, or if its worker process had sent 16 MiB of failed
            elements before. One that cannot be unpickled here is a text that says so. Where `read_text` and
            its like fail, it stands for a file or a part of one: `element.path` is the path or URL, and
            `open(element)` opens a file of this machine. `exception` names the line, in its text or a note.
        exception: What the step raised, with its own type and traceback.
        attempts: How many times the step's function was called with the element, retries among them. Of an
            element that crashes its process, the calls in processes beside a worker count: two, or as many as
            `retries` allows. Without a `timeout=`, two calls in the workers themselves come before these, and
            are not counted, since a worker that dies names no element.
        partition: The partition of the bag that holds the element; None if the source is not a bag.
    """

    step: str
    step_index: int
    index: int
    element: Any
    exception: Exception
    attempts: int = 1
    partition: int | None = None

    def __str__(self) -> str:
        of = "" if self.partition is None else f" of partition {self.partition}"
        times = "" if self.attempts == 1 else f", {self.attempts} times"
        from parcoll.text import line_of  # lazy: who only catches these needs no other module

        return f"{self.step} failed at element {self.index}{of}{times}: {line_of(self.exception)}"

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        from parcoll.text import short_repr  # lazy: as above

        shown = ", ".join(f"{field.name}={short_repr(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__qualname__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        place = (self.step, self.step_index, self.index)
        return type(self), (*place, self.element, self.exception, self.attempts, self.partition)


class VersionWarning(UserWarning):
    """A package has another version on the cluster than in this process, which may make functions fail.

    The message names the package and both versions. The same version on both sides is safer.
    """


# The logger `parcoll`: silent until the program that uses parcoll configures logging --------------


def _in_one_line(record: logging.LogRecord) -> bool:
    """Keep a record in one line, whatever is in the names and texts of users that it quotes."""
    message = record.getMessage()
    if not message.isprintable():
        from parcoll.text import escaped  # lazy: `import parcoll` loads this module alone

        record.msg, record.args = escaped(message), ()
    return True


logger = logging.getLogger("parcoll")
logger.addHandler(logging.NullHandler())
logger.addFilter(_in_one_line)
