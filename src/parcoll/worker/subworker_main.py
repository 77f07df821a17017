"""What runs in a process beside a worker: pieces of partitions, in the order in which the worker asks.

Each request is one pickle on the socket that the process was started with, and so is each reply. It lives
no longer than its worker, and has started nothing that it does not look after (see `subworker`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from operator import length_hint
from typing import Any, NamedTuple

from parcoll.chain.loop import Chain
from parcoll.chain.marks import LOADING, PACKING, RUNNING, Counting, Marked, Marks, Verdicts, marked
from parcoll.chain.place import Place
from parcoll.chain.timing import Pace
from parcoll.system import adopt_orphans, die_with_parent
from parcoll.wire.payload import Packed, Payload, Shared
from parcoll.worker import program as programs
from parcoll.worker.outcome import Kept, Outcome
from parcoll.worker.program import Program, SharedProgram, Sink
from parcoll.worker.tasks import broken, join, run_elements

# A piece ends when it took as long: what it had is run again when its process dies.
PIECE_SECONDS = 0.1


class Load(NamedTuple):
    """Asks to unpack a program and a partition; the reply is how many elements it has."""

    shared: SharedProgram | None  # None where it is the one that the process has
    elements: Payload
    place: Place


class Piece(NamedTuple):
    """Asks to run elements of the partition that was loaded; the reply is an `Outcome`."""

    start: int
    stop: int
    limit: int | None  # of results
    verdicts: Verdicts


class Folded(NamedTuple):
    """Asks to fold results that pieces made, in order; the reply is an `Outcome` with the value."""

    parts: Sequence[Packed]
    place: Place
    in_place: bool  # whether each result stands where its element does


class Joined(NamedTuple):
    """Asks to join kept partitions into a fold's value; the reply is a `Kept`."""

    shared: SharedProgram
    previous: Kept | None
    parts: Sequence[Kept]


Request = Load | Piece | Folded | Joined


def main(socket_fd: int, marks_fd: int, parent: int) -> None:
    """Serve until the worker is gone."""
    if not die_with_parent(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's process's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    programs.isolated = True
    served = _Served(Marks(marks_fd))
    for descriptor in (socket_fd, marks_fd):
        os.set_inheritable(descriptor, False)
    with socket.socket(fileno=socket_fd) as connection, connection.makefile("rwb") as stream:
        while length := stream.read(8):
            request: Request = pickle.loads(stream.read(int.from_bytes(length, "big")))
            reply = pickle.dumps(served.reply(request), pickle.HIGHEST_PROTOCOL)
            stream.write(len(reply).to_bytes(8, "big"))
            stream.write(reply)
            stream.flush()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # without waiting for threads that functions have started


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _reached(place: Place) -> Place:
    """Return the place of elements that do not stand where those of the source do."""

    class Reached(Place):
        def element(self, offset: int) -> str:
            return f"element {self.base - place.base + offset} of those of its partition that reached it"

    return Reached(*place)


class _Served:
    """The partition that this process has, and what it is asked to do with it."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._program: Program | None = None
        self._elements: Sequence[Any] = ()
        self._place = Place()
        self._chain = Chain([])

    def reply(self, request: Request) -> Any:
        """Do what was asked for; what goes wrong is an outcome too."""
        self._marks.begin(LOADING)
        started = time.perf_counter()
        try:
            if isinstance(request, Load):
                return self._load(request)
            if isinstance(request, Joined):
                return self._join(request)
            outcome = self._run(request) if isinstance(request, Piece) else self._fold(request)
            outcome.seconds = time.perf_counter() - started
            return outcome
        except BaseException as error:
            outcome = broken("a process beside the worker could not go on", error)
            return Kept(outcome, None) if isinstance(request, Joined) else outcome
        finally:
            with contextlib.suppress(Exception):  # a function may have closed it, or put None in its place
                sys.stdout.flush()

    def _load(self, request: Load) -> int | Outcome:
        try:
            if request.shared is not None:
                self._program = request.shared.load()
        except BaseException as error:
            return broken("the worker could not load the chain", error)
        self._place = request.place
        try:
            loaded = request.elements.load()
            self._elements = (
                loaded if isinstance(loaded, list | tuple | range | str | bytes) else list(loaded)
            )
        except BaseException as error:
            if isinstance(request.elements, Shared) and isinstance(error, OSError):
                # Not the elements' fault: they are sent once more, in the message itself.
                return Outcome(complete=False, unshared=str(error))
            return broken(f"the worker could not load the partition at {request.place.element(0)}", error)
        return len(self._elements)

    def _run(self, piece: Piece) -> Outcome:
        assert self._program is not None
        sink: Sink = "count" if self._program.sink == "count" else "results"
        program = dataclasses.replace(self._program, sink=sink, fold=None, limit=piece.limit)
        steps = marked(program.steps, self._marks, piece.verdicts)
        chain = Chain(steps, program.ledger)
        for step in steps:
            if isinstance(step.func, Marked):
                step.func.chain = chain
        self._marks.begin(RUNNING)
        self._chain = chain
        place = self._place.after(piece.start)
        elements = self._elements[piece.start : piece.stop]
        return run_elements(chain, program, elements, place, PIECE_SECONDS, self._pack)

    def _pack(self, value: Any) -> Packed:
        self._marks.numbers[0] = PACKING
        self._marks.numbers[5] = self._chain.after - length_hint(self._chain.iterator)
        return Packed.pack(value)

    def _fold(self, request: Folded) -> Outcome:
        assert self._program is not None
        assert self._program.fold is not None
        elements = [element for part in request.parts for element in part.load()]
        fold = self._program.fold
        step = len(self._program.steps)
        counting = Counting(fold.func, step, self._marks, fold.timeout)
        # It is called where the partition's value is there, to see whether `initial` changes that.
        combine: Counting | None = None
        if fold.combine is not None:
            combine = Counting(fold.combine, step + 1, self._marks, fold.timeout)
        program = dataclasses.replace(
            self._program,
            steps=(),
            sink="fold",
            limit=None,
            fold=dataclasses.replace(fold, func=counting, combine=combine),
            pace=Pace(),  # that of the steps says nothing of it
        )
        place = request.place if request.in_place else _reached(request.place)
        return run_elements(Chain([]), program, elements, place, None, self._pack)

    def _join(self, request: Joined) -> Kept:
        fold = request.shared.load().fold
        assert fold is not None
        counting = Counting(fold.func, 0, self._marks, fold.timeout)
        return join(request.shared, request.previous, request.parts, self._pack, counting)
