"""What parallel takes holds for reading too; and files that change, vanish or cannot be read are named."""

from __future__ import annotations

import gzip
import importlib.util
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import fsspec
import pytest
from checkpoints import at_rest, noting, stopped_after
from scripts import eventually
from scripts import lines as lines_in

from parcoll import (
    CheckpointError,
    Connection,
    ElementTimeoutError,
    parallel,
    read_csv,
    read_jsonl,
    read_text,
)
from parcoll.files import texts


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Give a folder of three packed files, one of which was cut short."""
    for name in "abc":
        content = gzip.compress("".join(f"{name} {number}\n" for number in range(50_000)).encode())
        (tmp_path / f"{name}.gz").write_bytes(content[: len(content) // 2] if name == "b" else content)
    return tmp_path


# on_error, retries, timeout -----------------------------------------------------------------------


def test_the_file_that_cannot_be_read_is_named(packed: Path, cluster: Connection) -> None:
    lines = read_text(packed / "*.gz")
    with pytest.raises(EOFError) as raised:
        lines.count()
    note = raised.value.__notes__[0]
    assert note.startswith(f"while reading {str(packed / 'b.gz')!r}, line ")
    assert repr(str(packed / "b.gz")) in raised.value.__notes__[-1]


def test_what_was_read_before_the_fault_stays(packed: Path, cluster: Connection) -> None:
    lines = read_text(packed / "*.gz", on_error="skip")
    found = list(lines)
    of_b = [line for line in found if line.startswith("b")]
    assert 100 < len(of_b) < 50_000
    assert found == [f"{n} {i}\n" for n in "abc" for i in range(50_000 if n != "b" else len(of_b))]
    (error,) = lines.errors
    assert (error.step, error.index, error.element.path) == ("read_text", 1, str(packed / "b.gz"))
    assert f"line {len(of_b) + 1:,}" in error.exception.__notes__[0]
    assert (lines.stats.failed, lines.stats.elements_in, lines.stats.elements_out) == (1, 3, len(found))
    instead = read_text(packed / "b.gz", on_error=lambda error: f"{error.element.path} is broken")
    assert list(instead)[-2:] == [of_b[-1], f"{packed / 'b.gz'} is broken"]


def test_lines_before_one_that_cannot_be_decoded_are_given(tmp_path: Path, inline: Connection) -> None:
    good = "".join(f"ä{number}\r\n" for number in range(30_000)).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(good + b"b\xffd\nlast\n")
    lines = read_text(path, on_error="skip")
    assert lines.count() == 30_000
    (error,) = lines.errors
    assert isinstance(error.exception, UnicodeDecodeError)
    assert error.exception.object == b"b\xffd"
    assert f"line 30,001, byte {len(good) + 1}" in error.exception.__notes__[0]
    assert read_text(path, errors="ignore").count() == 30_002


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "iso2022_jp"])
@pytest.mark.parametrize("count", [2, 30_000])
@pytest.mark.parametrize("behind", ["", "\nlast\n"])
def test_they_are_where_bytes_do_not_tell_the_ends_of_lines(
    tmp_path: Path, inline: Connection, encoding: str, count: int, behind: str
) -> None:
    good = "".join(f"日{number}\r\n" for number in range(count)).encode(encoding)
    wrong = {"utf-16": b"\0\xdc", "utf-16-le": b"\0\xdc", "utf-32": b"\xff" * 4, "iso2022_jp": b"\xff"}[
        encoding
    ]
    path = tmp_path / "a.txt"
    path.write_bytes(good + wrong + behind.encode(encoding))
    lines = read_text(path, encoding=encoding, on_error="skip")
    assert list(lines) == [f"日{number}\n" for number in range(count)]
    (error,) = lines.errors
    assert isinstance(error.exception, UnicodeDecodeError)
    assert error.exception.object == wrong
    assert f"line {count + 1:,}, byte {len(good)}" in error.exception.__notes__[0]


class FlakyFile:
    """A file whose reads fail, but for the first ones of each time it is opened."""

    def __init__(self, file: Any, reads: int) -> None:
        self._file = file
        self._reads = reads

    def __enter__(self) -> FlakyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        if name == "read1":
            raise AttributeError(name)
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if not self._reads:
            raise ConnectionError("the line is bad")
        self._reads -= 1
        return self._file.read(size)  # type: ignore[no-any-return]


def test_a_retry_gives_no_line_twice(
    tmp_path: Path, inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number}\n" for number in range(1_000)))
    local = fsspec.get_filesystem_class("file")
    real, opened = local._open, [0]

    def flaky(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        opened[0] += 1
        return FlakyFile(real(self, path, *args, **kwargs), 2 * opened[0])

    monkeypatch.setattr(local, "_open", flaky)
    monkeypatch.setattr(texts, "CHUNK", 700)
    lines = read_text(path, retries=5)
    assert list(lines) == [f"{number}\n" for number in range(1_000)]
    assert lines.stats.failed == 0
    assert opened[0] == 3
    opened[0] = 0
    lines = read_text(path, retries=1, on_error="skip")
    found = list(lines)
    assert 100 < len(found) < 1_000
    assert found == [f"{number}\n" for number in range(len(found))]
    assert lines.errors[0].attempts == 2
    opened[0] = 0
    with pytest.raises(ConnectionError, match="the line is bad"):
        list(read_text(path, retries=5, retry_on=ValueError))


def test_a_file_that_gives_nothing_is_stopped(tmp_path: Path, cluster: Connection) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").write_text("one\n")
    lines = read_text([tmp_path / "a.txt", tmp_path / "pipe"], timeout=1, on_error="skip")
    assert list(lines) == ["one\n"]
    assert isinstance(lines.errors[0].exception, ElementTimeoutError)


def test_a_worker_that_is_killed_doubles_no_line(tmp_path: Path, cluster: Connection) -> None:
    path, killed = tmp_path / "a.txt", tmp_path / "killed"
    path.write_text("".join(f"{number}\n" for number in range(5_000)))

    def deadly(line: str) -> str:
        if line == "2500\n" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    assert list(read_text(path, blocksize=1_000).map(deadly)) == [f"{number}\n" for number in range(5_000)]
    assert killed.exists()


# Files that change --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocksize", [None, 4])
def test_a_file_that_changes_or_vanishes_is_named(
    tmp_path: Path, cluster: Connection, blocksize: int | None
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    later = read_text(path, blocksize=blocksize)
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(OSError, match=r"a\.txt' has changed .*it had 8 bytes, and has 14"):
        list(later)
    assert list(later) == ["one\n", "two\n", "three\n"], "the next evaluation looks anew"
    later = read_text(path, blocksize=blocksize)
    path.write_text("one\ntwo\nfives\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(OSError, match=r"a\.txt' has changed .*mtime"):
        list(later)
    later = read_text(path, blocksize=blocksize)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.txt' was there when the files were listed"):
        list(later)
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        list(later)


def test_a_file_that_is_written_to_while_it_is_read_is_named(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")

    def append(line: str) -> str:
        with path.open("a") as file:
            file.write("three\n")
        return line

    with pytest.raises(OSError, match=r"a\.txt' has changed"):
        list(read_text(path).map(append))
    assert read_text(path).first() == "one\n"


def test_a_package_that_only_workers_lack_is_the_failure_of_no_file(
    tmp_path: Path, cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So `on_error="skip"` does not leave out each of them."""
    assert importlib.util.find_spec("snappy") is None, "which nothing here needs"
    (tmp_path / "a.sz").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "snappy", types.ModuleType("snappy"))  # as if it were here
    lines = read_text(tmp_path / "a.sz", on_error="skip")
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError, match="needs the package python-snappy, here and on the workers"):
        lines.count()


def test_a_file_of_memory_that_changes_is_named(tmp_path: Path, inline: Connection) -> None:
    url = f"memory://{tmp_path.name}/a.jsonl"
    for content in ("1\n", "1\n2\n"):
        with fsspec.open(url, "w") as file:
            file.write(content)
        if content == "1\n":
            values = read_jsonl(url)
    with pytest.raises(OSError, match="has changed"):
        list(values)
    assert list(values) == [1, 2]


# Checkpoints, bags, collections in functions ------------------------------------------------------


def test_a_run_resumes_within_its_files(tmp_path: Path, cluster: Connection) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{number}\n" for number in range(100)))

    def made() -> Any:
        lines = read_text(tmp_path / "*.txt", blocksize=50, checkpoint=run, partition_size=1)
        return lines.map(int).map(noting(log))

    expected = [2 * number for number in range(100)] * 3
    assert stopped_after(made(), 120) == expected[:120]
    again = made()
    assert list(again) == expected
    assert again.stats.resumed > 3
    assert eventually(lambda: at_rest(cluster))
    before = len(lines_in(log))
    assert list(made()) == expected
    assert len(lines_in(log)) == before
    with pytest.raises(CheckpointError, match="has changed"):
        list(
            read_text(tmp_path / "*.txt", blocksize=50, encoding="latin-1", checkpoint=run)
            .map(int)
            .map(noting(log))
        )
    os.utime(tmp_path / "c.txt", ns=(1, 1))
    with pytest.raises(CheckpointError, match="results of another source"):
        list(made())


def test_a_file_that_was_corrupt_and_is_mended_is_read_again(tmp_path: Path, inline: Connection) -> None:
    """Only that one, and only with `retry_failed=True`; no other file may have changed."""
    whole = {name: gzip.compress("".join(f"{name}{n}\n" for n in range(9)).encode()) for name in "abcd"}
    for name, content in whole.items():
        (tmp_path / f"{name}.gz").write_bytes(content[:-6] if name in "bd" else content)

    def made(**settings: Any) -> Any:
        run = tmp_path / "run"
        return read_text(tmp_path / "*.gz", on_error="skip", checkpoint=run, **settings).map(str.strip)

    assert list(made()) == [f"{name}{n}" for name in "abcd" for n in range(9)], "the ends alone are missing"
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"mended\n"))
    with pytest.raises(CheckpointError, match="results of another source"):
        list(made())
    again = made(retry_failed=True)
    expected = [f"{name}{n}" for name in "abcd" for n in range(9) if name != "b"]
    expected.insert(9, "mended")
    assert list(again) == expected
    assert [Path(error.element.path).name for error in again.errors] == ["d.gz"]
    assert list(made()) == expected, "and it is saved so"
    (tmp_path / "a.gz").write_bytes(whole["b"])
    with pytest.raises(CheckpointError, match="results of another source"):
        list(made(retry_failed=True))


def test_a_bag_has_a_partition_a_part(tmp_path: Path, cluster: Connection) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("x\n" + "".join(f"{number}\n" for number in range(10)))
    rows = read_csv(tmp_path / "*.csv", blocksize=10, newlines_in_values=False).map(lambda row: int(row["x"]))
    bag = rows.bag
    assert bag.npartitions == 6
    assert bag.compute(scheduler="synchronous") == list(range(10)) * 2
    assert list(parallel(bag).map(str)) == [str(number) for number in range(10)] * 2
    assert bag.sum().compute(scheduler=cluster.engine.client) == 90
    (tmp_path / "empty.csv").touch()
    assert read_csv(tmp_path / "empty.csv", blocksize=10, newlines_in_values=False).bag.npartitions == 1


def test_functions_may_use_such_a_collection(tmp_path: Path, cluster: Connection) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n")
    lines = read_text(tmp_path / "a.txt").map(int)
    assert list(parallel([10, 20]).map(lambda x: x * sum(lines))) == [30, 60]
    assert lines.fold(lambda a, b: a + b, 0, lambda a, b: a + b) == 3
    assert lines.batched(2).first() == (1, 2)
    assert lines.persist().count() == 2
