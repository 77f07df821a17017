"""What `multiprocessing` shares between processes, functions share as well."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Client, Listener
from threading import Thread

import pytest

from parcoll import Connection, parallel


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_manager_of_the_script_answers_functions(cluster: Connection, timeout: float | None) -> None:
    with multiprocessing.Manager() as manager:
        squares = manager.dict()
        parallel(range(20), timeout=timeout).foreach(lambda x: squares.update({x: x * x}))
        assert dict(squares) == {x: x * x for x in range(20)}


def test_a_listener_of_the_script_answers_functions(cluster: Connection) -> None:
    key = bytes(multiprocessing.current_process().authkey)
    with Listener(("127.0.0.1", 0), authkey=key) as listener:
        address = listener.address

        def serve() -> None:
            with listener.accept() as connection:
                connection.send("hello")

        serving = Thread(target=serve)
        serving.start()

        def ask(x: int) -> str:
            with Client(address, authkey=bytes(multiprocessing.current_process().authkey)) as connection:
                return str(connection.recv())

        assert parallel([1]).map(ask).first() == "hello"
        serving.join()
