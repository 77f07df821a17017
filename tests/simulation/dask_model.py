"""A model of dask: scheduler, workers and messages, as far as an evaluation leans on them.

What dask guarantees, and this model keeps (`tests/dask_facts/test_what_the_model_takes_for_granted.py` has a
test of each line with dask itself):

1. Messages of one stream arrive in the order in which they were sent: client to scheduler, scheduler to each
   worker, each worker to the scheduler, scheduler to client. Between streams there is no order.
2. A worker's event about a task arrives before its message that the task is done.
3. A task runs when all that it depends on is in memory, on one worker at a time as far as the scheduler
   knows.
4. If a worker is lost, the scheduler notices behind all that it has heard of it, gives its tasks to others,
   and has results that were there only, and are still wanted, made again. A task whose workers were lost
   four times has failed. A worker that was given up ends, when it hears of that.
5. What no client and no task wants is forgotten. A task that has begun is not stopped by that. A client that
   is lost wants nothing any more.

What it does not guarantee, and this model does not keep: a task may run twice, and both may tell; the
messages of a worker that dies, or is cut off, may arrive in part, or late; a worker that is cut off goes on
with its task, which another one has meanwhile; a result may be asked of a worker that has just died; tasks
may be moved before they begin; workers come and go.
"""

from __future__ import annotations

import heapq
import math
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtual import Clock

from parcoll.cluster.losses import LOST_TOPIC
from parcoll.worker import outcome as outcomes

ALLOWED_FAILURES = 3
ASK_AGAIN = 0.5  # seconds, where a worker that has a result does not answer
LATE = (0.5, 1.0, 1.0, 3.0, 20.0)  # times as long as most messages take


class Stream:
    """Messages in one direction, in order."""

    def __init__(self, clock: Clock, delay: Callable[[], float]) -> None:
        self._clock = clock
        self._delay = delay
        self._last = 0.0
        self.cut = float("inf")  # what arrives later is lost
        self.held = 0.0  # what arrives before waits until then

    def send(self, when: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call be made at the other end."""
        self._last = max(self._last, when + self._delay(), self.held)
        self._clock.at(self._last, self._arrive, call, arguments)

    def _arrive(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._clock.now < self.held:
            self._last = max(self._last, self.held)
            self._clock.at(self.held, self._arrive, call, arguments)
        elif self._clock.now < self.cut:
            call(*arguments)

    @property
    def empty_at(self) -> float:
        """When all that was sent has arrived."""
        return self._last


@dataclass(eq=False)
class STask:
    """A task as the scheduler knows it."""

    key: str
    run: Any
    needs: tuple[str, ...]  # in an order that does not depend on hashes
    priority: float
    state: str = "waiting"  # processing, memory, erred
    worker: SWorker | None = None
    there: dict[SWorker, None] = field(default_factory=dict)
    wanted: bool = False
    suspicious: int = 0
    attempt: int = 0  # how often it was given to a worker (dask's `run_id`)


@dataclass(eq=False)
class SWorker:
    """A worker process."""

    name: str
    inbox: Stream
    outbox: Stream
    alive: bool = True
    data: dict[str, Any] = field(default_factory=dict)
    ready: list[tuple[float, int, str]] = field(default_factory=list)
    given: dict[str, tuple[STask, int]] = field(default_factory=dict)  # with the attempt
    threads: int = 1
    executing: dict[str, bool] = field(default_factory=dict)  # tasks, and whether their results are wanted
    died: float = math.inf  # when; or when the cluster took it for dead
    cut_off: bool = False  # nothing comes to it, or from it
    beside: list[Any] = field(default_factory=list)  # processes that wait for their next partition

    @property
    def answers(self) -> bool:
        """Whether it can be asked for results."""
        return self.alive and not self.cut_off


class Scheduler:
    """The scheduler of one cluster."""

    def __init__(
        self, clock: Clock, rng: random.Random, n_workers: int, tell: Callable[[str], None], threads: int = 1
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.tell = tell
        self.threads = threads  # of each worker
        self.tasks: dict[str, STask] = {}
        self.workers: dict[str, SWorker] = {}
        self.client: Any = None  # of `client_model`
        self.alive = True
        self.speed = rng.choice([0.0002, 0.002, 0.05])  # seconds that a message takes, about
        self.at_once = rng.choice([1, 2, 2, 64])  # tasks that a worker is given before it has done others
        self.tells = True  # of lost workers: a scheduler may refuse the plugin
        self._numbers = 0
        self.most_workers = 0  # at a time
        self.most_held = 0  # results, at a time
        self.lost = 0  # workers
        self.to_client = self.stream()
        for _ in range(n_workers):
            self.add_worker()

    def delay(self) -> float:
        """Return how long a message takes."""
        chance = self.rng.random
        return self.speed * LATE[int(chance() * len(LATE))] * chance()

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self.clock, self.delay)

    def add_worker(self) -> None:
        """Have another worker come."""
        self._numbers += 1
        worker = SWorker(f"worker-{self._numbers}", self.stream(), self.stream(), threads=self.threads)
        self.workers[worker.name] = worker
        self.most_workers = max(self.most_workers, len(self.workers))
        self.tell(f"{worker.name} comes")
        self._assign()

    # What the client asks for.

    def update_graph(self, graph: dict[str, Any], keys: list[str], priority: dict[str, float]) -> None:
        """Take tasks in, unless their client was lost meanwhile."""
        if self.client is None:
            return
        for key, run in graph.items():
            needs = tuple(sorted(map(str, run.dependencies)))
            self.tasks[key] = STask(key, run, needs, priority.get(key, 0.0), wanted=key in keys)
            if any(need in self.tasks and self.tasks[need].state == "erred" for need in needs):
                self._fail(self.tasks[key])
        self._assign()

    def client_releases(self, keys: list[str]) -> None:
        """Note that the client wants some results no more."""
        for key in keys:
            if (task := self.tasks.get(key)) is not None:
                task.wanted = False
                self._forget_unneeded(task)
        self._assign()

    # What workers say.

    def task_finished(self, worker: SWorker, key: str, attempt: int) -> None:
        """Note that a worker has a result."""
        task = self.tasks.get(key)
        if task is None or task.worker is not worker or task.attempt != attempt:
            if task is None or task.worker is not worker:
                worker.inbox.send(self.clock.now, self._worker_frees, worker, key)
            return
        task.state, task.worker = "memory", None
        task.there = {worker: None}
        held = sum(other.state == "memory" and other.wanted for other in self.tasks.values())
        self.most_held = max(self.most_held, held)
        self._report(key, "finished")
        for need in task.needs:
            if (needed := self.tasks.get(need)) is not None:
                self._forget_unneeded(needed)
        self._forget_unneeded(task)
        self._assign()

    def event(self, topic: str, message: Any) -> None:
        """Pass an event on to the client."""
        if self.client is not None:
            self.to_client.send(self.clock.now, self.client.on_event, topic, message)

    def remove_worker(self, worker: SWorker) -> None:
        """Notice that a worker is gone."""
        if self.workers.pop(worker.name, None) is None:
            return
        self.lost += 1
        processing = [task for task in self.tasks.values() if task.worker is worker]
        lost = [task for task in self.tasks.values() if worker in task.there]
        for task in lost:
            del task.there[worker]
        lost = [task for task in lost if not task.there]
        self.tell(f"the scheduler notices that {worker.name} is gone: {[t.key for t in processing + lost]}")
        for task in processing:
            task.worker, task.state = None, "waiting"
            task.suspicious += 1
            if task.suspicious > ALLOWED_FAILURES:
                self._fail(task)
        for task in lost:
            task.state = "waiting"
            if task.wanted:
                self._report(task.key, "lost")
            for other in list(self.tasks.values()):
                if task.key in other.needs and other.state == "processing":
                    self._take_back(other)
        for task in lost:
            self._forget_unneeded(task)
        keys = [task.key for task in processing + lost]
        message = {"worker": worker.name, "tasks": len(processing), "keys": keys}
        if self.tells:
            self.event(LOST_TOPIC, message)
        self._assign()

    def steal(self) -> None:
        """Ask a worker for a task that it has not begun, as dask does where another one is idle."""
        waiting = [task for task in self.tasks.values() if task.worker is not None]
        if waiting and len(self.workers) > 1:
            task = self.rng.choice(waiting)
            assert task.worker is not None
            task.worker.inbox.send(self.clock.now, self._worker_gives_back, task.worker, task.key)

    def reschedule(self, worker: SWorker, key: str, attempt: int) -> None:
        """Give a task to another worker: this one has let go of it."""
        task = self.tasks.get(key)
        if task is not None and task.worker is worker and task.attempt == attempt:
            task.worker, task.state = None, "waiting"
            self._assign()

    # Its own doing.

    def _fail(self, task: STask) -> None:
        """Note that a task has failed, and with it all that needs its result."""
        task.state = "erred"
        self._report(task.key, "error")
        for other in list(self.tasks.values()):
            if task.key in other.needs and other.state == "waiting":
                self._fail(other)

    def _take_back(self, task: STask) -> None:
        worker, task.worker, task.state = task.worker, None, "waiting"
        if worker is not None:
            worker.inbox.send(self.clock.now, self._worker_frees, worker, task.key)

    def _needed(self, task: STask) -> bool:
        return task.wanted or any(
            task.key in other.needs and other.state in ("waiting", "processing")
            for other in self.tasks.values()
        )

    def _forget_unneeded(self, task: STask) -> None:
        if self._needed(task) or task.key not in self.tasks:
            return
        # A result of which another one was made that may have to be made again is remembered, not kept.
        makes = any(task.key in other.needs for other in self.tasks.values())
        for worker in [*task.there, *([task.worker] if task.worker is not None else [])]:
            worker.inbox.send(self.clock.now, self._worker_frees, worker, task.key)
        task.there, task.worker = {}, None
        if makes:
            task.state = "released"
            return
        del self.tasks[task.key]
        for need in task.needs:
            if (needed := self.tasks.get(need)) is not None:
                self._forget_unneeded(needed)

    def _assign(self) -> None:
        most = max(self.at_once, self.threads)
        waiting, counts = [], dict.fromkeys(self.workers.values(), 0)
        for task in self.tasks.values():
            if task.state == "waiting":
                waiting.append(task)
            elif task.worker in counts:
                counts[task.worker] += 1
        for task in waiting:  # more may be found on the way: what was lost needs what is to be made again too
            for need in task.needs:
                if (needed := self.tasks.get(need)) is not None and needed.state == "released":
                    needed.state = "waiting"
                    waiting.append(needed)
        if len(waiting) > 1:
            waiting.sort(key=lambda task: task.priority, reverse=True)
        for task in waiting:
            if task.needs and not self._may_run(task):
                continue
            least = min(counts.values(), default=most)
            if least >= most:
                return
            free = [worker for worker, count in counts.items() if count == least]
            worker = free[int(self.rng.random() * len(free))]
            counts[worker] += 1
            task.state, task.worker = "processing", worker
            task.attempt += 1
            worker.inbox.send(self.clock.now, self._worker_gets, worker, task, task.attempt)

    def _may_run(self, task: STask) -> bool:
        return all(need in self.tasks and self.tasks[need].state == "memory" for need in task.needs)

    def _report(self, key: str, status: str) -> None:
        if self.client is not None:
            self.to_client.send(self.clock.now, self.client.on_status, key, status)

    # What workers do.

    def _worker_gets(self, worker: SWorker, task: STask, attempt: int) -> None:
        if not worker.alive:
            return
        worker.given[task.key] = task, attempt
        if task.key in worker.executing:  # it was to be dropped, and is wanted after all
            worker.executing[task.key] = True
            return
        self._numbers += 1
        heapq.heappush(worker.ready, (-task.priority, self._numbers, task.key))
        self._begin(worker)

    def _worker_asks_again(self, worker: SWorker, task: STask, attempt: int) -> None:
        if worker.given.get(task.key) == (task, attempt):  # not freed, given back or given anew meanwhile
            self._worker_gets(worker, task, attempt)

    def _worker_frees(self, worker: SWorker, key: str) -> None:
        worker.data.pop(key, None)
        worker.given.pop(key, None)
        if key in worker.executing:
            worker.executing[key] = False

    def _worker_gives_back(self, worker: SWorker, key: str) -> None:
        begun = not worker.alive or key in worker.executing
        if not begun and (given := worker.given.pop(key, None)) is not None:
            self.tell(f"{worker.name} gives {key} back")
            worker.outbox.send(self.clock.now, self.reschedule, worker, key, given[1])

    def _begin(self, worker: SWorker) -> None:
        while worker.alive and len(worker.executing) < worker.threads and worker.ready:
            _, _, key = heapq.heappop(worker.ready)
            if key not in worker.given or key in worker.executing:
                continue
            task, attempt = worker.given[key]
            values: dict[str, Any] = {}
            for need in task.needs:
                source = next((w for w in self.workers.values() if w.answers and need in w.data), worker)
                if need not in source.data:  # lost just now: the scheduler will notice, and take it back
                    if any(w.cut_off and need in w.data for w in self.workers.values()):
                        self.clock.after(ASK_AGAIN, self._worker_asks_again, worker, task, attempt)
                    break
                value = source.data[need]
                values[need] = value if source is worker else pickle.loads(pickle.dumps(value))
            else:
                worker.executing[key] = True
                self._execute(worker, task, attempt, values)

    def _execute(self, worker: SWorker, task: STask, attempt: int, values: dict[str, Any]) -> None:
        clock = self.clock
        started = clock.now + self.delay()
        self.tell(f"{worker.name} begins {task.key}")
        before, running_now.task = running_now.task, (worker, self, started, task.key, attempt)
        local = clock.begin(started)
        try:
            result = task.run(values)
            ended = clock.local
        finally:
            running_now.task, clock.local = before, local
        topic, told = outcomes.mailbox.pop(task.key, ("", None))
        dies, running_now.ends = running_now.ends, None
        if dies is not None:
            clock.at(dies, self.kill, worker)
            return
        clock.at(ended, self._ended, worker, task.key, result, topic, told)

    def _ended(self, worker: SWorker, key: str, result: Any, topic: str, told: Any) -> None:
        if not worker.alive:
            return
        if worker.executing.pop(key) and (given := worker.given.pop(key, None)) is not None:
            worker.data[key] = result
            self.tell(f"{worker.name} ends {key}")
            if told is not None:
                small = self.rng.random() < 0.8  # else the client has to ask for it
                message = (key, pickle.dumps(told) if small else None)
                worker.outbox.send(self.clock.now, self.event, topic, message)
            worker.outbox.send(self.clock.now, self.task_finished, worker, key, given[1])
        self._begin(worker)

    # Faults.

    def kill(self, worker: SWorker) -> None:
        """End a worker: what it has sent arrives in part, and the scheduler notices behind that."""
        if not worker.alive:
            return
        self.tell(
            f"{worker.name} dies" + (f", with {', '.join(worker.executing)}" if worker.executing else "")
        )
        worker.alive, worker.died = False, min(worker.died, self.clock.now)
        worker.outbox.cut = self.clock.now + self.rng.choice([0.0, self.delay(), 1e9])
        noticed = max(worker.outbox.empty_at, self.clock.now) + self.rng.choice([0.0, 0.01, 1.0, 10.0])
        self.clock.at(noticed, self.remove_worker, worker)
        self.clock.at(noticed + self.rng.choice([0.0, 0.5, 5.0]), self.add_worker)

    def cut_off(self, worker: SWorker) -> None:
        """Have nothing come to a worker's host, or from it, for a while, in which it goes on.

        The scheduler may take the worker for dead before it is heard of again. Then it is of no use any more:
        with dask, it ends itself when it hears that, and another one starts.
        """
        if not worker.answers:
            return
        back = self.clock.now + self.rng.choice([0.2, 2.0, 15.0]) * (0.5 + self.rng.random())
        given_up = self.clock.now + self.rng.choice([0.1, 1.0, 10.0, 1e9])
        self.tell(f"{worker.name} is cut off")
        worker.cut_off = True
        worker.outbox.held = worker.inbox.held = back
        if given_up < back:
            self.clock.at(given_up, self._give_up, worker)
        self.clock.at(back, self._come_back, worker)

    def _give_up(self, worker: SWorker) -> None:
        if worker.alive and worker.name in self.workers:
            worker.died = self.clock.now
            worker.outbox.cut = worker.inbox.cut = self.clock.now
            self.remove_worker(worker)

    def _come_back(self, worker: SWorker) -> None:
        worker.cut_off = False
        if worker.name in self.workers or not worker.alive:
            self.tell(f"{worker.name} is not cut off any more")
            return
        self.tell(f"{worker.name} hears that it was given up, and ends")
        worker.alive = False
        if self.alive:
            self.add_worker()

    def lose_client(self) -> None:
        """Have the scheduler and its client lose each other: nobody wants its results any more."""
        if not self.alive or self.client is None:
            return
        self.tell("the scheduler and the client lose each other")
        self.to_client.cut = self.clock.now
        client, self.client = self.client, None
        client.lose()
        self.client_releases([key for key, task in self.tasks.items() if task.wanted])

    def die(self) -> None:
        """End the scheduler, and with it all workers."""
        self.tell("the scheduler dies")
        self.alive = False
        self.to_client.cut = self.clock.now
        for worker in self.workers.values():
            worker.alive, worker.died = False, min(worker.died, self.clock.now)
            worker.outbox.cut = worker.inbox.cut = self.clock.now
        if self.client is not None:
            self.client.lose()


class _Running:
    """The task that runs now: worker, scheduler, when it began, key, and which attempt it is."""

    task: tuple[SWorker | None, Scheduler | None, float, str, int] = (None, None, 0.0, "", 0)
    ends: float | None = None  # when one of its functions has ended its worker
    beside: Any = None  # the process beside its worker that runs its functions now


running_now = _Running()


def look_at_late() -> None:
    """Do what the worker's own watch does while a function takes long (`outcome.Watch`)."""
    worker, scheduler, started, *_ = running_now.task
    if worker is None or scheduler is None or len(outcomes.under_way) != 1:
        return
    (task,) = outcomes.under_way.values()
    tally, ticket = task.tally, task.ticket
    now = scheduler.clock.read()
    look = started + ticket.patience + outcomes.SLACK
    while look <= now and tally is not None and ticket.topic is not None:
        if tally.position != task.seen:
            task.seen = tally.position
        elif (begun := tally.hand_back(task.end)) is not None:
            early = outcomes.Outcome(read=begun - task.base, complete=False, early=True)
            message = (ticket.key, pickle.dumps(early))
            scheduler.clock.at(look, _told_early, worker, scheduler, ticket.topic, message)
            return
        look += outcomes.LOOK_AGAIN


def _told_early(worker: SWorker, scheduler: Scheduler, topic: str, message: Any) -> None:
    if worker.alive:
        scheduler.tell(f"{worker.name} hands back elements of {message[0]}")
        worker.outbox.send(scheduler.clock.now, scheduler.event, topic, message)
