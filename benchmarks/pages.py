"""Pages that take their time: a server of them (`python pages.py`), and ways to fetch many at the same time.

Each page takes 50 to 200 ms, and one in twenty has the status 500, which every way leaves out.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from peers import Parcoll, Peer

from parcoll import per_worker

HOST = "127.0.0.1"
AT_ONCE = 50
BAD = 20  # one in so many has the status 500


def seconds(number: int) -> float:
    """Return how long the server takes for a page."""
    return 0.05 + number * 37 % 151 / 1000


def right(count: int) -> list[int]:
    """Return the numbers of the pages that there are."""
    return [number for number in range(count) if number % BAD]


async def serve() -> None:
    """Answer each request by the number in its path, until stdin closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1][1:])
        await asyncio.sleep(seconds(number))
        text, status = str(number).encode(), b"200 OK" if number % BAD else b"500 No"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(text)))
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def fetch(port: int, number: int) -> int:
    """Return what a page says; OSError if there is none."""
    connection = http.client.HTTPConnection(HOST, port)
    try:
        connection.request("GET", f"/{number}")
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(answer.status)
    return int(text)


async def make_session() -> AsyncIterator[Any]:
    """Give a session of aiohttp; None where that is not installed."""
    if find_spec("aiohttp") is None:
        yield None
        return
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as made:
        yield made


session = per_worker(make_session)


async def fetch_async(port: int, number: int, given: Any = None) -> int:
    """Do as `fetch` does, in the session that is given, or that of the worker."""
    pages = given or await session()
    if pages is None:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status = int(head.split(b" ")[1])
    else:
        async with pages.get(f"http://{HOST}:{port}/{number}") as answer:
            text, status = await answer.read(), answer.status
    if status != 200:
        raise OSError(status)
    return int(text)


def in_a_pool(port: int, count: int) -> list[int]:
    """Fetch as people do without parcoll: in a pool of threads."""

    def one(number: int) -> int | None:
        try:
            return fetch(port, number)
        except OSError:
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [found for found in pool.map(one, range(count)) if found is not None]


def in_a_loop(port: int, count: int) -> list[int]:
    """Fetch as people do without parcoll: in an event loop, with a semaphore."""

    async def run() -> list[int]:
        semaphore = asyncio.Semaphore(AT_ONCE)
        made = make_session()
        given = await anext(made)

        async def one(number: int) -> int | None:
            async with semaphore:
                try:
                    return await fetch_async(port, number, given)
                except OSError:
                    return None

        try:
            found = await asyncio.gather(*map(one, range(count)))
        finally:
            await anext(made, None)
        return [number for number in found if number is not None]

    return asyncio.run(run())


def ways(peer: Peer, port: int, count: int) -> dict[str, Callable[[], list[int]]]:
    """Return how a peer fetches."""
    if not isinstance(peer, Parcoll):
        return {
            f"ThreadPoolExecutor({AT_ONCE})": lambda: in_a_pool(port, count),
            "aiohttp" if find_spec("aiohttp") else "asyncio": lambda: in_a_loop(port, count),
        }
    numbers = peer.parallel(range(count), on_error="skip")

    def plain(number: int) -> int:
        return fetch(port, number)

    async def waiting(number: int) -> int:
        return await fetch_async(port, number)

    return {
        f"concurrency={AT_ONCE}": lambda: list(numbers.map(plain, concurrency=AT_ONCE)),
        "async def": lambda: list(numbers.map(waiting, concurrency=AT_ONCE)),
    }


def fetched(peer: Peer, port: int, count: int) -> dict[str, Any]:
    """Time each way once."""
    found, good = {}, True
    for name, way in ways(peer, port, count).items():
        started, spent = time.perf_counter(), time.process_time()
        answer = way()
        found[name] = time.perf_counter() - started, time.process_time() - spent
        good = good and answer == right(count)
    return {"seconds": found, "right": good}


if __name__ == "__main__":
    asyncio.run(serve())
