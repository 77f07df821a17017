"""Main thread: where a worker with one thread runs functions, while dask's loop has another thread.

Signals, event loops and some libraries know the main thread only, and what a function keeps in a global is
often for the thread that made it. So all our functions run in the main thread, also those of an evaluation
within a function: the thread runs them while it waits for that evaluation, on top of the function that waits,
as the script's own loop would. A function of the same level does not begin before the one that waits has
ended: the worker holds its task back, and then dask may give it to another worker.

Tasks that are none of ours run here too, one by one. While the main thread is within a task that has left
dask's pool (`secede`, `worker_client`), they run in other threads, as in any dask worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, TypeVar

import distributed
from distributed.threadpoolexecutor import ThreadPoolExecutor, threads_lock
from distributed.threadpoolexecutor import rejoin as rejoin_pool
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.worker_state_machine import RescheduleEvent, SecedeEvent

from parcoll import ending
from parcoll.clock import time
from parcoll.local.levels import Running, level_of
from parcoll.system import Inbox

T = TypeVar("T")

HELD_SECONDS = (0.02, 0.64)  # that a task is held back before another worker may have it; doubled each time
SPARE_SECONDS = 10.0  # after which it runs in another thread: the main one waits for what is no task
MOST_HELD = 1000  # tasks whose times are remembered


_running: ContextVar[Running | None] = ContextVar("running", default=None)


class _Work:
    """A call that the pool was given."""

    def __init__(
        self, pool: MainThreadPoolExecutor, running: Running | None, call: Callable[[], Any]
    ) -> None:
        self.future: Future[Any] = Future()
        self.running = running
        self._pool = pool
        self._call: Callable[[], Any] | None = call

    def run(self) -> None:
        """Make the call, on top of what this thread is within; the pool has noted that it begins."""
        call, self._call = self._call, None
        error, result = None, None
        if call is None or not self.future.set_running_or_notify_cancel():
            return self._pool.ended(self)
        try:
            with self._pool.within(self.running):
                result = call()
        except ending.ProcessEnds:
            raise
        except BaseException as caught:
            error = caught
        self._pool.ended(self)  # before dask hears of it, and gives this thread its next task
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        return None


class _Wait:
    """A thread that waits within a task, and runs tasks of higher levels meanwhile."""

    def __init__(self, level: int, wake: Callable[[], object]) -> None:
        self.level = level
        self.wake = wake


class MainThreadPoolExecutor(ThreadPoolExecutor):  # dask looks for the words in this name
    """dask's pool with one thread, which is the main one of the process that makes it."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="parcoll-spare")  # type: ignore[no-untyped-call]
        self.worker: Any = None
        self.changed: Callable[[], object] = lambda: None  # called where a task that is held back might begin
        self._lock = threading.RLock()
        self._main = threading.current_thread()
        self._threads.add(self._main)
        self._stack: list[_Work] = []  # what the main thread is within
        self._placed: list[_Work] = []  # tasks of ours that have not begun
        self._coming: list[Running] = []  # admitted ones that dask has not submitted yet
        self._stuck: list[_Work] = []
        self._waits: list[_Wait] = []  # the main thread's first

    # In dask's loop --------------------------------------------------------------------------------

    def admits(self, level: int) -> bool:
        """Tell whether a task of ours would begin at once."""
        with self._lock:
            ahead = [*self._coming, *(work.running for work in self._placed if work.running)]
            if not self._stack:
                return not ahead and not self._placed and self._main in self._threads
            highest = max((running.level for running in ahead), default=-1)
            return any(highest <= wait.level < level for wait in self._waits)

    @contextlib.contextmanager
    def expecting(self, running: Running) -> Iterator[None]:
        """Have no other task be admitted to the place of one that dask is about to submit."""
        if running.placed:
            with self._lock:
                self._coming.append(running)
        try:
            yield
        finally:
            self._has_come(running)

    def _has_come(self, running: Running) -> None:
        with self._lock:
            if running in self._coming:
                self._coming.remove(running)

    def spare(self) -> None:
        """Have tasks run in another thread that begin nowhere: the main one waits for what is no task.

        Only those that were so at the last call too, some seconds ago.
        """
        with self._lock:
            stuck = [work for work in self._placed if work.running and work.running.level > 0]
            if self._waits or self._main in self._threads:
                stuck = []
            for work in stuck:
                if work in self._stuck:
                    self._placed.remove(work)
                    self._work_queue.put(work)
            self._stuck = stuck
        self._adjust_thread_count()

    def spares(self, level: int, held_seconds: float) -> bool:
        """Tell whether a task is to run in another thread, since the main one waits for what is no task."""
        return level > 0 and held_seconds > SPARE_SECONDS and self._main not in self._threads

    def submit(self, func: Any, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        """Make a call soon; for a task of ours in the main thread, or in one that waits for such tasks."""
        running = _running.get()
        if running is not None and running.thread:  # within that task: `rejoin` submits something
            running = None
        work = _Work(self, running, lambda: func(*args, **kwargs))
        if running is None or not running.placed:
            self._work_queue.put(work)
            self._adjust_thread_count()
            return work.future
        self._has_come(running)
        with self._lock:
            self._placed.append(work)
            if not self._stack:
                self._work_queue.put(_Work(self, None, lambda: None))  # wakes the main thread
            for wait in self._waits:
                if wait.level < running.level:
                    wait.wake()
                    break
        return work.future

    def _adjust_thread_count(self) -> None:
        with self._lock:
            if not self._work_queue.empty():
                super()._adjust_thread_count()  # type: ignore[no-untyped-call]

    def shutdown(self, wait: bool = True, timeout: Any = None) -> None:  # type: ignore[override]
        """Have the threads end; the main one is not waited for, since it ends the process."""
        super().shutdown(wait=False)  # type: ignore[no-untyped-call]

    # In the main thread ----------------------------------------------------------------------------

    def serve(self) -> None:
        """Run what is submitted, until the pool is shut down or the process is told to end."""
        pool_state.executor = self
        pool_state.proceed = True
        while not self._shutdown and not ending.told:
            self._let_others_back()
            if self._main not in self._threads:
                self.come_back()
            work = None
            try:
                work = self._begin(-1) or self._work_queue.get()
                if work is None:
                    return
                self._begins(work)
                work.run()
            except Exception as error:  # a signal's handler has raised it, which a function has left
                traceback.print_exc()
                if work is not None and not work.future.done():
                    self.ended(work)
                    work.future.set_exception(error)

    def _begin(self, above: int) -> _Work | None:
        """Return a task of ours of a level above that, which begins in this thread now."""
        with self._lock:
            for work in self._placed:
                if work.running is not None and work.running.level > above:
                    self._placed.remove(work)
                    self._begins(work)
                    return work
        return None

    def _begins(self, work: _Work) -> None:
        with self._lock:
            if threading.current_thread() is self._main and work not in self._stack[-1:]:
                self._stack.append(work)

    def ended(self, work: _Work) -> None:
        """Note that a call has ended."""
        if work.running is not None:
            work.running.over = True
        with self._lock:
            if self._stack and self._stack[-1] is work:
                self._stack.pop()
        self.changed()

    @contextlib.contextmanager
    def within(self, running: Running | None) -> Iterator[None]:
        """Note that this thread runs a task, and afterwards that it runs what it did before."""
        ident = threading.get_ident()
        before = self.worker.active_threads.get(ident)
        if running is not None:
            running.thread = ident
        try:
            yield
        finally:
            if before is not None:  # dask has put the inner one in its place, and taken that away
                with self.worker.active_threads_lock:
                    self.worker.active_threads[ident] = before

    def _let_others_back(self) -> None:
        """Let a thread that had left the pool finish its task, in the place of the main one."""
        with self._rejoin_lock:
            if not self._rejoin_list:
                return
            thread, event = self._rejoin_list.pop()
            self._threads.add(thread)
            self._threads.discard(self._main)
        event.set()

    def come_back(self) -> None:
        """Have this thread be of the pool again: at once, if nobody is in its place."""
        thread = threading.current_thread()
        with threads_lock, self._lock:
            if not self._threads:
                self._threads.add(thread)
        if thread not in self._threads:
            rejoin_pool()
        pool_state.proceed = True
        self.changed()

    # In a task -------------------------------------------------------------------------------------

    def wait_for(self, results: Inbox[T | None], running: Running, seconds: float) -> T:
        """Return the next of `results`, in which None may be too; run tasks of higher levels meanwhile.

        Raises:
            queue.Empty: There was none in that time.
        """
        deadline = time.monotonic() + seconds
        wait = _Wait(running.level, lambda: results.put(None))
        while True:
            if ending.told:
                raise ending.ProcessEnds
            work = self._begin(running.level)
            if work is not None:
                with self._in_pool():
                    work.run()
                continue
            with self._waiting(wait):
                item = results.get(max(deadline - time.monotonic(), 0.0))
            if item is not None:
                return item

    @contextlib.contextmanager
    def _in_pool(self) -> Iterator[None]:
        """Have this thread, which has left the pool, be of it again: it takes no place of another's."""
        thread = threading.current_thread()
        self._threads.add(thread)
        try:
            yield
        finally:
            self._threads.discard(thread)
            self._adjust_thread_count()

    @contextlib.contextmanager
    def _waiting(self, wait: _Wait) -> Iterator[None]:
        with self._lock:
            self._waits.insert(0 if threading.current_thread() is self._main else len(self._waits), wait)
            held_up = [work.running for work in self._placed if work.running]
            if any(running.level > wait.level for running in held_up):
                wait.wake()
        if held_up or self.worker.is_holding:
            self.worker.look_again([running.key for running in held_up if running.level <= wait.level])
        try:
            yield
        finally:
            with self._lock:
                self._waits.remove(wait)


def current_task() -> tuple[MainThreadPoolExecutor, Running] | None:
    """Return the pool and the task that this thread runs; None where no such pool runs it."""
    running = _running.get()
    if running is None or running.over or running.thread != threading.get_ident():
        return None
    pool = distributed.get_worker().executors["default"]
    return (pool, running) if isinstance(pool, MainThreadPoolExecutor) else None


class Worker(distributed.Worker):
    """A worker whose functions run in the main thread."""

    def __init__(self, *args: Any, executor: MainThreadPoolExecutor, **kwargs: Any) -> None:
        super().__init__(*args, executor=executor, **kwargs)
        self._pool = executor
        self._held: dict[Any, tuple[float, float]] = {}  # since when, and for how long the next time
        self._changed = asyncio.Event()
        self._sparing: asyncio.Task[None] | None = None
        self.is_holding = 0  # tasks, at this moment
        executor.worker = self
        executor.changed = self._on_change

    async def execute(self, key: Any, *, stimulus_id: str) -> Any:
        """Run a task once the main thread is free for it, or leave it to another worker."""
        level = level_of(key)
        placed = level is not None
        if level is not None and not self._pool.admits(level):
            self._let_others_begin(key)
            if not await self._hold(key, level):
                return RescheduleEvent(key=key, stimulus_id=stimulus_id)
            self._held.pop(key, None)
            placed = self._pool.admits(level)
        if self._sparing is None:
            self._sparing = asyncio.ensure_future(self._spare_stuck())
        running = Running(key, level or 0, placed)
        _running.set(running)
        with self._pool.expecting(running):
            return await super().execute(key, stimulus_id=stimulus_id)

    async def _spare_stuck(self) -> None:
        while True:
            await asyncio.sleep(SPARE_SECONDS / 2)
            self._pool.spare()

    def _let_others_begin(self, key: Any) -> None:
        """Tell dask that a task does not take the worker's one slot, for others must be able to begin."""
        unknown: Any = None
        stimulus_id = f"parcoll-held-{time.time()}"
        self.handle_stimulus(SecedeEvent(key=key, compute_duration=unknown, stimulus_id=stimulus_id))

    async def _hold(self, key: Any, level: int) -> bool:
        """Wait until a task may begin; False where another worker is to have it."""
        now = time.monotonic()
        since, seconds = self._held.get(key, (now, HELD_SECONDS[0]))
        if len(self._held) > MOST_HELD:
            self._held.clear()
        self._held[key] = since, min(2 * seconds, HELD_SECONDS[1])
        deadline = now + seconds
        self.is_holding += 1
        try:
            while not (self._pool.admits(level) or self._pool.spares(level, time.monotonic() - since)):
                left = deadline - time.monotonic()
                state = self.state.tasks.get(key)
                if left <= 0 or state is None or state.state == "cancelled":
                    return False
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
        finally:
            self.is_holding -= 1
        return True

    def _on_change(self) -> None:
        if self.is_holding:
            self.look_again([])

    def look_again(self, keys: list[Any]) -> None:
        """Have tasks that are held back begin if they may, and give up the slot of those that may not."""

        def look() -> None:
            self._changed.set()
            for key in keys:
                self._let_others_begin(key)

        self.loop.add_callback(look)
