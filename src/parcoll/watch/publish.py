"""Publishing: what a client sends to the scheduler about its evaluations, for the pipelines' web page."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import socket
import sys
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

from parcoll.clock import time
from parcoll.errors import logger
from parcoll.text import escaped
from parcoll.watch import page
from parcoll.watch.stats import Stats
from parcoll.watch.table import verdict

FIRST_SECONDS = 0.25  # shorter evaluations are not published, unless they fail
MOST_BEGINNERS = 1000  # a loop that runs no longer takes none away
LOOK_SECONDS = 0.1  # between two looks at those that have begun
NEXT_SECONDS = 0.5
LAST_SECONDS = 1.0  # that the end of an evaluation waits until the scheduler has its numbers
BUSY_SECONDS = 0.01  # between two looks whether the numbers can be read
MAX_STEPS = 50  # in a message; further steps are left out
MAX_FAILURES = 5  # in a message, the latest
MAX_TEXT = 300  # characters

# The note of a failure quotes the element, which not everyone who can open the page may see.
_ELEMENT = re.compile(r"(, at element \d+( of [^:]*)?):.*", re.DOTALL)

# By the client's stream to its scheduler: a client may come back to a new scheduler.
_pages: weakref.WeakKeyDictionary[Any, asyncio.Task[bool]] = weakref.WeakKeyDictionary()
_beginners: weakref.WeakKeyDictionary[Any, _Beginners] = weakref.WeakKeyDictionary()  # by client


def new_page() -> page.Page:
    """Return the scheduler's plugin, with the web page that it serves."""
    return page.Page((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


@cache
def _pickled_page() -> bytes:
    """Pickle the plugin with its module: the scheduler may not have parcoll."""
    cloudpickle.register_pickle_by_value(page)
    try:
        pickled: bytes = cloudpickle.dumps(new_page())
    finally:
        cloudpickle.unregister_pickle_by_value(page)
    return pickled


async def add_page(client: Any, has_page: bool = False) -> bool:
    """Have the scheduler serve the web page, once for each client.

    Returns whether there is a page, since a scheduler may refuse to unpickle it. Our own scheduler has one
    (`has_page`).
    """
    stream = client.scheduler_comm
    if stream is None:  # closed, or on its way to another scheduler
        return False
    if stream not in _pages:
        _pages[stream] = asyncio.ensure_future(_add_page(client, has_page))
    return await asyncio.shield(_pages[stream])


async def _add_page(client: Any, has_page: bool) -> bool:
    if has_page:
        return True
    try:
        pickled = _pickled_page()
    except FileNotFoundError:  # a worker has parcoll's modules from a client, which brought the page as well
        return True
    try:
        register = client.scheduler.register_scheduler_plugin
        await register(plugin=pickled, name=page.Page.name, idempotent=True)
    except Exception as error:
        logger.info("the scheduler refuses the pipelines' web page: %s: %s", type(error).__name__, str(error))
        return False
    return True


def add_page_now(client: Any) -> None:
    """Do as `add_page` does, and return when it is done. From a thread that is not the client's."""
    with contextlib.suppress(Exception):
        client.sync(add_page, client)


@cache
def _who() -> str:
    """Name this process to others."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "?"
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    return f"{user}@{socket.gethostname()}: {program}, process {os.getpid()}"[:MAX_TEXT]


class _Beginners:
    """Evaluations that have just begun. Most have ended when the client's loop looks at them.

    To wake the loop for each of them takes a tenth of a small evaluation, since the two want the GIL.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._new: deque[weakref.ref[Publisher]] = deque(maxlen=MOST_BEGINNERS)
        self._looks = False

    def add(self, publisher: Publisher) -> None:
        """Have an evaluation be looked at, soon enough for its first message. From any thread."""
        self._new.append(weakref.ref(publisher))
        if not self._looks:
            self._looks = True
            self._loop.add_callback(self._look)

    def _look(self) -> None:
        # First: what is added from now on is seen now, or has this called again.
        self._looks = bool(self._new)
        while self._new:
            if (publisher := self._new.popleft()()) is not None:
                publisher.begin()
        if self._looks:
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)


class Publisher:
    """Sends the numbers of one evaluation to the scheduler, twice a second and at its end."""

    def __init__(self, client: Any, stats: Stats, has_page: bool) -> None:
        self._client = client
        self._has_page = has_page
        self._stats = stats
        self._id = stats._token  # the same on all clusters that the evaluation has
        self._published = False
        self._ended = False
        self._pid = os.getpid()
        self._thread: int | None = None  # of the client's loop
        self._timer: asyncio.TimerHandle | None = None
        self._adding: asyncio.Task[bool] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._begun = time.monotonic()
        if has_page and client.status == "running":
            with contextlib.suppress(RuntimeError):  # as below
                if client not in _beginners:
                    _beginners[client] = _Beginners(client.loop)
                _beginners[client].add(self)
        else:
            self._in_loop(self.begin)

    def end(self) -> None:
        """Publish the final numbers, if some were published before, or the evaluation was long or failed."""
        self._ended = True
        if os.getpid() != self._pid:
            return
        worth_it = self._published or self._stats.seconds >= FIRST_SECONDS or self._stats.failed
        if not worth_it and self._timer is None:
            return
        told: Future[None] = Future()
        self._in_loop(self._finish, told if worth_it else None)
        if worth_it and self._client.status == "running" and threading.get_ident() != self._thread:
            with contextlib.suppress(TimeoutError):
                told.result(LAST_SECONDS)

    def _in_loop(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the client's loop has been closed
            self._client.loop.add_callback(call, *arguments)

    def begin(self) -> None:
        """Have messages be sent, if the evaluation goes on. In the client's loop."""
        self._thread = threading.get_ident()
        if self._has_page and self._ended:
            return
        self._adding = asyncio.ensure_future(add_page(self._client, self._has_page))
        left = self._begun + FIRST_SECONDS - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._tick)

    def _tick(self) -> None:
        if self._ended:
            return
        self._timer = asyncio.get_running_loop().call_later(NEXT_SECONDS, self._tick)
        if self._sending is None or self._sending.done():  # a slow scheduler gets less
            self._published = True
            self._sending = asyncio.ensure_future(self._send())

    async def _finish(self, told: Future[None] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if told is None:
            return
        try:
            if self._sending is not None:
                await asyncio.wait([self._sending])  # else it might come after the last message
            await self._send()
        finally:
            told.set_result(None)

    async def _send(self) -> None:
        with contextlib.suppress(Exception):
            if await add_page(self._client, self._has_page):
                message = await self._message_when_free()
                await self._client.scheduler.log_event(topic=page.TOPIC, msg=message)

    async def _message_when_free(self) -> dict[str, Any]:
        # This loop does not wait for the lock: the thread that has it may be evaluating, in a callback of the
        # garbage collector, and wait for this loop.
        lock = self._stats._lock.lock
        while not lock.acquire(blocking=False):
            await asyncio.sleep(BUSY_SECONDS)
        try:
            return self._message()
        finally:
            lock.release()

    def _message(self) -> dict[str, Any]:
        snapshot = self._stats.snapshot()
        sentence = verdict(snapshot)
        for failure in snapshot["failures"]:
            failure["note"] = _ELEMENT.sub(r"\1", failure["note"])
        for text in (*snapshot["steps"], *snapshot["failures"]):
            text.update({k: v[:MAX_TEXT] for k, v in text.items() if isinstance(v, str)})
        snapshot["name"] = snapshot["name"][:MAX_TEXT]
        snapshot["steps"] = snapshot["steps"][:MAX_STEPS]
        snapshot["failures"] = snapshot["failures"][-MAX_FAILURES:]
        me = {"id": self._id, "client": _who(), "client_id": self._client.id, "verdict": sentence}
        shown: dict[str, Any] = _escaped(snapshot | me)
        return shown


def _escaped(found: Any) -> Any:
    """Return the numbers with every text as it can be shown; dask's messages hold no other ones."""
    if isinstance(found, str):
        return escaped(found)
    if isinstance(found, dict):
        return {name: _escaped(value) for name, value in found.items()}
    return [_escaped(value) for value in found] if isinstance(found, list) else found
