"""Subworker's main: what a process beside a worker runs: slices of partitions, as the worker asks for them.

Each request is one pickle on the socket that the process was started with, and so is each reply. The process
lives no longer than its worker, and what it has started is ended with it (see `subworker`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from operator import length_hint
from typing import Any, NamedTuple, NoReturn

from parcoll import ending
from parcoll.calls import objects, per_workers
from parcoll.chain import apart
from parcoll.chain.loop import Chain
from parcoll.chain.marks import LOADING, PACKING, RUNNING, Counting, Marks, Precedents, marked
from parcoll.chain.place import Place, reached
from parcoll.chain.sinks import Sink
from parcoll.chain.steps import WHOLE, Share, Step
from parcoll.chain.tally import Tally
from parcoll.chain.timing import Pace
from parcoll.clock import time
from parcoll.system import adopt_orphans, die_with_parent, resident_bytes
from parcoll.wire.exceptions import Failure
from parcoll.wire.payload import Packed, Payload
from parcoll.wire.script import Script, make_main, running
from parcoll.worker import program as programs
from parcoll.worker import standin
from parcoll.worker.fold import Fold, join
from parcoll.worker.outcome import Kept, Outcome, broken, unloadable_chain, unloadable_partition
from parcoll.worker.program import Program, SharedProgram
from parcoll.worker.tasks import as_sequence, run_elements
from parcoll.world import records
from parcoll.world.boot import LENGTH_BYTES, track_with
from parcoll.world.world import in_own_context

# A slice ends after so long. If its process dies, all that was run of the slice is run again.
SLICE_SECONDS = 0.1
WAITING_SECONDS = 2.0  # if several calls wait at the same time, since all of them have to end with the slice


class LoadPartition(NamedTuple):
    """Asks to unpack a program and a partition. The reply is how many elements the partition has."""

    shared: SharedProgram | None  # None if the process has it already
    elements: Payload
    place: Place
    task: Any = None  # the key of the worker's task
    share: Share = WHOLE


class RunSlice(NamedTuple):
    """Asks to run elements of the partition that was loaded. The reply is an `Outcome`."""

    start: int
    stop: int
    limit: int | None  # of results
    precedents: Precedents


class TakeResults(NamedTuple):
    """Asks the sink to take the results of all slices, in order. The reply is an `Outcome`."""

    parts: Sequence[Packed]
    place: Place
    in_place: bool  # each result stands where its element does


class JoinParts(NamedTuple):
    """Asks to join kept partitions into the value of a fold. The reply is a `Kept`."""

    shared: SharedProgram
    previous: Kept | None
    parts: Sequence[Kept]
    before: int  # values before those of the parts, if there is none so far
    task: Any = None  # the key of the worker's task


Request = LoadPartition | RunSlice | TakeResults | JoinParts


def main(
    socket_fd: int,
    marks_fd: int,
    answers_fd: int,
    parent: int,
    name: str = "",
    tracker: int | None = None,
    door_fd: int | None = None,
    asking_fd: int | None = None,
) -> NoReturn:
    """Serve until the worker is gone, or has nothing more to ask.

    With a door, other lanes come in there, and what belongs to no lane is asked at `asking_fd`.
    """
    track_with(tracker)
    if not die_with_parent(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's process's to handle
    programs.isolated = True
    make_main(Script())  # in place of the code that started this process

    def work() -> None:
        marks = Marks(marks_fd)
        marks.numbers[6] = resident_bytes(os.getpid())
        channel = standin.prepare(answers_fd if asking_fd is None else asking_fd, marks)
        per_workers.making = lambda what: channel.lanes.here.making(what)
        if asking_fd is not None:
            channel.enter(answers_fd, marks)
        gc.freeze()  # what functions make is found sooner
        gc.enable()
        for descriptor in (socket_fd, marks_fd):
            os.set_inheritable(descriptor, False)
        if door_fd is not None:
            arguments = door_fd, channel, name
            threading.Thread(target=_admit, args=arguments, name="parcoll-door", daemon=True).start()
        if door_fd is None:
            _serve(socket_fd, _Served(marks, channel), name)
        else:
            _serve_lane(socket_fd, _Served(marks, channel, in_lane=True), name)
            for lane in [thread for thread in threading.enumerate() if isinstance(thread, _Lane)]:
                lane.join()  # others may be at work, where this one was late; the worker sees to the end
        standin.close()

    ending.after(work)


_at_work: list[records.Send] = []  # how lanes that run something send what is logged


def _admit(door_fd: int, channel: standin.Channel, name: str) -> None:
    """Begin with each lane that comes in, and answer: that shows that threads of this process can run."""
    with socket.socket(fileno=door_fd) as door:
        door.setblocking(True)
        os.set_inheritable(door_fd, False)
        while True:
            asked, descriptors, _, _ = socket.recv_fds(door, 1, 3)
            if not asked:
                return
            if descriptors:
                _Lane(descriptors, channel, name).start()
            else:
                door.sendall(asked)


class _Lane(threading.Thread):
    """A thread that serves as the main thread does, beside it. It ends what objects it has."""

    def __init__(self, descriptors: Sequence[int], channel: standin.Channel, name: str) -> None:
        super().__init__(name="parcoll-lane", daemon=True)
        self._descriptors = descriptors
        self._channel = channel
        self._of = name

    def run(self) -> None:
        """Serve until nothing more is asked."""
        socket_fd, marks_fd, tells_fd = self._descriptors
        os.set_inheritable(socket_fd, False)
        marks = Marks(marks_fd)
        os.close(marks_fd)
        marks.numbers[6] = resident_bytes(os.getpid())
        self._channel.enter(tells_fd, marks)
        _serve_lane(socket_fd, _Served(marks, self._channel, in_lane=True), self._of)
        objects.end_of_thread()


def _serve_lane(socket_fd: int, served: _Served, name: str) -> None:
    with contextlib.suppress(OSError):  # where a call was late, the worker does not wait for its reply
        _serve(socket_fd, served, name)


def _send_of_others(packed: bytes) -> None:
    """Send what threads have logged that functions have started, by a lane which is asked something."""
    for send in reversed(_at_work):
        with contextlib.suppress(OSError):
            send(packed)
            break


def _serve(socket_fd: int, served: _Served, name: str) -> None:
    with socket.socket(fileno=socket_fd) as connection, connection.makefile("rwb") as stream:
        sending = threading.Lock()

        def send(value: Any) -> None:
            content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            with sending:  # in two parts: to join them takes the bytes of a large result once more
                stream.write(len(content).to_bytes(LENGTH_BYTES, "big"))
                stream.write(content)
                stream.flush()

        def send_record(packed: bytes) -> None:
            send(records.Logged(packed))

        records.send_own(send_record)
        records.send_all(send_record if not served.in_lane else _send_of_others, f"{name}-beside")
        while length := stream.read(LENGTH_BYTES):
            request: Request = pickle.loads(stream.read(int.from_bytes(length, "big")))
            _at_work.append(send_record)
            try:
                reply = served.reply(request)
            finally:
                _at_work.remove(send_record)
            if ending.told:
                return  # what came of a function that was interrupted is not told
            send(reply)
            del request, reply


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Served:
    """The partition that this process has, and what it is asked to do with it."""

    def __init__(self, marks: Marks, channel: standin.Channel, in_lane: bool = False) -> None:
        self._marks = marks
        self._channel = channel
        self.in_lane = in_lane  # other threads run partitions too
        self._task: Any = None
        self._shared: SharedProgram | None = None
        self._program: Program | None = None
        self._elements: Sequence[Any] = ()
        self._place = Place()
        self._steps: Sequence[Step] = ()
        self._tally = Tally([])

    def reply(self, request: Request) -> Any:
        """Do what was asked for. What goes wrong is an outcome too."""
        self._channel.failures.pop(self._marks, None)
        if isinstance(request, LoadPartition | JoinParts):
            self._task = request.task
        standin.begin(self._task)
        reply = self._reply(request)
        failure = self._channel.failures.pop(self._marks, None)
        if failure is None:
            return reply
        outcome = Outcome(failure=Failure.of(failure, "in a process beside a worker"))
        return Kept(outcome, None) if isinstance(request, JoinParts) else outcome

    def _reply(self, request: Request) -> Any:
        self._marks.begin(LOADING)
        started = apart.clock()
        try:
            if isinstance(request, LoadPartition):
                return self._load(request)
            if isinstance(request, JoinParts):
                return self._join(request)
            assert self._shared is not None
            with self._as_script(self._shared):
                outcome = self._run(request) if isinstance(request, RunSlice) else self._take(request)
            outcome.seconds = apart.clock() - started
            outcome.made = apart.taken()
            return outcome
        except BaseException as error:
            outcome = broken("a process beside the worker could not go on", error)
            return Kept(outcome, None) if isinstance(request, JoinParts) else outcome
        finally:
            with contextlib.suppress(Exception):  # a function may have closed it, or put None in its place
                sys.stdout.flush()

    def _as_script(self, shared: SharedProgram) -> contextlib.AbstractContextManager[None]:
        """Have what runs in this thread, beside others, belong to the program's script."""
        return running(shared.main) if self.in_lane else contextlib.nullcontext()

    def _load(self, request: LoadPartition) -> int | Outcome:
        try:
            self._shared = request.shared or self._shared
            assert self._shared is not None
            self._program = self._shared.load()
            if not self.in_lane:
                make_main(self._shared.main)
        except BaseException as error:
            return unloadable_chain(error)
        self._place = request.place
        self._steps = [step.within(request.share) for step in self._program.steps]
        try:
            with self._as_script(self._shared):
                self._elements = as_sequence(request.elements)
        except BaseException as error:
            return unloadable_partition(request.place.element(0), request.elements, error)
        return len(self._elements)

    def _run(self, request: RunSlice) -> Outcome:
        assert self._program is not None
        program = dataclasses.replace(self._program, sink=self._program.sink.of_slice(request.limit))
        self._tally = Tally(program.steps, program.ledger)
        elements = self._elements[request.start : request.stop]
        alone = len(elements) == 1  # then its calls are made one by one, and the marks tell which it is at
        steps = marked(self._steps, self._marks, request.precedents, self._tally, alone)
        self._marks.begin(RUNNING)
        place = self._place.after(request.start)
        seconds = WAITING_SECONDS if program.waits else SLICE_SECONDS
        return run_elements(Chain(steps, self._tally), program, elements, place, seconds, self._pack)

    def _pack(self, value: Any) -> Packed:
        if ending.told:  # the marks are to name the call that was interrupted
            raise ending.ProcessEnds
        self._marks.numbers[0] = PACKING
        self._marks.numbers[5] = self._tally.after - length_hint(self._tally.iterator)
        return Packed.pack(value)

    def _take(self, request: TakeResults) -> Outcome:
        assert self._program is not None
        elements = [element for part in request.parts for element in part.load()]
        sink = self._marked(self._program.sink, len(self._program.steps))
        pace = Pace()  # the pace of the steps says nothing of the sink
        program = dataclasses.replace(self._program, steps=(), sink=sink, pace=pace)
        place = request.place if request.in_place else reached(request.place)
        return run_elements(Chain([]), program, elements, place, None, self._pack)

    def _marked(self, sink: Sink, step: int) -> Sink:
        """Return the sink with functions that note their calls, as steps behind those of the chain."""
        functions = {
            name: Counting(func, step + number, self._marks, sink.timeout)
            for number, (name, func) in enumerate(sink.functions.items())
        }
        return sink.with_functions(functions)

    def _join(self, request: JoinParts) -> Kept:
        fold = request.shared.load().fold
        if not self.in_lane:
            make_main(request.shared.main)
        marked_fold = self._marked(fold, 0)
        assert isinstance(marked_fold, Fold)
        with self._as_script(request.shared):
            arguments = marked_fold, request.previous, request.parts, request.before, self._pack
            return in_own_context(join, *arguments)  # type: ignore[no-any-return]
