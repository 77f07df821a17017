"""Files that a server has: over HTTP, and in an S3."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec.asyn
import pytest

from parcoll import (
    Connection,
    read_csv,
    read_files,
    read_jsonl,
    read_text,
)

fsspec.asyn.get_loop()  # starts the thread of fsspec's event loop, which lasts as long as the process
TEXT = "".join(f"line {number} ä\r\n" for number in range(3_000))
LINES = TEXT.replace("\r\n", "\n").splitlines(keepends=True)


class Pages(ThreadingHTTPServer):
    """Serves what is in a dict, in ranges too, with an ETag."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.files: dict[str, bytes] = {}
        self.ranges = 0  # that were asked for


class _Page(BaseHTTPRequestHandler):
    server: Pages
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        part, wanted = content, self.headers.get("Range")
        self.send_response(200 if wanted is None else 206)
        if wanted is not None:
            self.server.ranges += 1
            first, last = wanted.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    """Give a server of files."""
    pytest.importorskip("aiohttp")
    server = Pages()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_are_read_over_http(pages: Pages, cluster: Connection) -> None:
    url = f"http://127.0.0.1:{pages.server_port}"
    pages.files = {
        "/a.txt": TEXT.encode(),
        "/a.txt.gz": gzip.compress(TEXT.encode()),
        "/b.jsonl?x=1": b'{"x": 1}\n',
        "/empty.txt": b"",
    }
    assert list(read_text(f"{url}/a.txt")) == LINES
    pages.ranges = 0
    cut = read_text(f"{url}/a.txt", blocksize="10 kiB")
    assert cut.bag.npartitions == 4
    assert list(cut) == LINES
    assert pages.ranges >= 4
    assert list(read_text([f"{url}/a.txt.gz", f"{url}/empty.txt"])) == LINES
    assert list(read_jsonl(f"{url}/b.jsonl?x=1")) == [{"x": 1}]
    assert list(read_files(f"{url}/empty.txt")) == [(f"{url}/empty.txt", b"")]
    with pytest.raises(FileNotFoundError, match="no-such"):
        read_text([f"{url}/a.txt", f"{url}/no-such.txt"])
    pages.files |= {f"/many/{number}.txt": b"%d\n" % number for number in range(60)}
    many = read_text([f"{url}/many/{number}.txt" for number in range(60)])
    assert list(many) == list(many) == [f"{number}\n" for number in range(60)]
    for content in (TEXT.upper().encode(), b"less"):
        later = read_text(f"{url}/a.txt", blocksize="10 kiB")
        pages.files["/a.txt"] = content
        with pytest.raises(OSError, match=r"a\.txt' has changed since"):
            list(later)
        assert "".join(later) == content.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the URL of a bucket of a real S3 server, and what fsspec needs to reach it."""
    from stores import s3_options  # skips where there is no such server

    with s3_options() as options:
        yield "s3://bucket", options


def test_files_are_read_from_an_s3(bucket: tuple[str, dict[str, Any]], cluster: Connection) -> None:
    import s3fs

    url, options = bucket
    system = s3fs.S3FileSystem(**options)
    for name in ("a[1].txt", "a1.txt", "b.txt"):
        system.pipe(f"bucket/in/{name}", f"{name}\n{TEXT}".encode())
    system.pipe("bucket/c.csv", b"a,b\n1,2\n")
    texts = [f"{name}\n" for name in ("a1.txt", "a[1].txt", "b.txt")]
    for size in (None, "10 kiB"):
        lines = read_text(f"{url}/in/*.txt", blocksize=size, storage_options=options)
        assert list(lines) == [line for first in texts for line in [first, *LINES]]
    assert read_text(f"{url}/in/a[1].txt", storage_options=options).first() == "a[1].txt\n"
    assert list(read_csv(f"{url}/c.csv", storage_options=options)) == [{"a": "1", "b": "2"}]
    assert [path for path, _ in read_files(f"{url}/in", storage_options=options)] == [
        f"bucket/in/{first.strip()}" for first in texts
    ]
    for wrong in (f"{url}/none*.txt", f"{url}/none.txt"):
        with pytest.raises(FileNotFoundError, match=r"none"):
            read_text([f"{url}/c.csv", wrong], storage_options=options)
    with pytest.raises(IsADirectoryError, match=r"in/\*.txt"):
        read_text(f"{url}/in", storage_options=options)
    later = read_text(f"{url}/in/b.txt", storage_options=options)
    system.pipe("bucket/in/b.txt", b"another")
    with pytest.raises(OSError, match="has changed since"):
        list(later)
    assert list(later) == ["another"]
