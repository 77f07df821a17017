"""Visits to a dashboard with any headers, as no browser sends them."""

from __future__ import annotations

import socket

QUERIES = ("since=x", "since=", "since=-1", "since=1.5", "since=%ff", "since=" + "9" * 5000, "since=%D9%A3")
QUERIES += ("since=1&since=2", "since=%00", "since=%0d%0aX:%20y", "since=1e3", "since=0x10", "since=\xe9")


def ask(port: int, path: str, *headers: str, method: str = "GET", version: str = "1.1") -> tuple[int, bytes]:
    """Return status and body of the answer to a request with these headers, and no others."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
        lines = [f"{method} {path} HTTP/{version}", *headers, "Connection: close", "", ""]
        visitor.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b""
        while part := visitor.recv(2**16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
