"""A server of pages that take their time, which counts how many are asked for at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import select
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from scripts import lines

LOOPBACK = "127.0.0.1"
LATE = 0.02  # seconds between the moment when a call may start, and its note of when it did


class Pages(ThreadingHTTPServer):
    """Answers `/NUMBER?seconds=S` with the number after so long; `?status=500` with that."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Page)
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0  # at the same time
        self.asked: list[int] = []
        self.starts: list[float] = []
        self.gone = 0  # whose client has not waited

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.server_address[1])

    def forget(self) -> None:
        """Count from nothing."""
        with self.lock:
            self.most, self.gone = self.now, 0
            self.asked, self.starts = [], []

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients are killed."""


class _Page(BaseHTTPRequestHandler):
    server: Pages
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        url, server = urlsplit(self.path), self.server
        given = {name: values[0] for name, values in parse_qs(url.query).items()}
        number = int(url.path[1:])
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
            server.asked.append(number)
            server.starts.append(time.monotonic())
        try:
            # A client that is killed, or cancels, is gone at once: its end of the connection closes.
            readable, _, _ = select.select([self.connection], [], [], float(given.get("seconds", 0)))
        finally:
            with server.lock:
                server.now -= 1
                server.gone += bool(readable)
        if not readable:
            self.send_response(int(given.get("status", 200)))
            self.end_headers()
            self.wfile.write(b"%d" % number)

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextlib.contextmanager
def pages() -> Iterator[Pages]:
    """Serve pages in a thread of this process."""
    server = Pages()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="pages")
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(port: int, number: int, seconds: float = 0.0, status: int = 200) -> int:
    """Return the number that a page shows; OSError for another status than 200."""
    connection = http.client.HTTPConnection(LOOPBACK, port)
    with contextlib.closing(connection):
        connection.request("GET", f"/{number}?seconds={seconds}&status={status}")
        answer = connection.getresponse()
        text = answer.read()
    if answer.status != 200:
        raise OSError(f"page {number}: status {answer.status}")
    return int(text)


async def fetch_async(port: int, number: int, seconds: float = 0.0, status: int = 200) -> int:
    """Return the number that a page shows; OSError for another status than 200."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(f"GET /{number}?seconds={seconds}&status={status} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    if b" 200 " not in answer.partition(b"\r\n")[0]:
        raise OSError(f"page {number}: status {answer.split()[1].decode()}")
    return int(answer.rpartition(b"\r\n\r\n")[2])


def collect(results: Iterable[Any], found: list[Any]) -> None:
    """Add the results to a list, as far as they come."""
    for result in results:
        found.append(result)


def starts_of(file: Path) -> list[float]:
    """Return the times that calls have noted."""
    return sorted(map(float, lines(file)))


def most_within(starts: list[float], seconds: float) -> int:
    """Return the most starts in any half-open span of so many seconds, less what may be late."""
    span = seconds - LATE
    return max(sum(start <= other < start + span for other in starts) for start in starts)
