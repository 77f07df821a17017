"""A segment of memory that this machine's processes share: written, read, used again, dropped."""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_files import memory_files
from scripts import clean_environment

from parcoll.wire import segments
from parcoll.wire.segments import Segments, Span, write

MB = 10**6


PARTS = {
    "a head alone": [b"head"],
    "nothing": [b""],
    "empty parts": [b"", b"", b"x", bytearray()],
    "odd sizes": [b"head", os.urandom(1), os.urandom(4095), os.urandom(4097), os.urandom(70_001)],
    "over 2 MiB": [os.urandom(77), os.urandom(2**21 + 1)],
    "large and small": [os.urandom(3 * MB), os.urandom(2**21), b"", os.urandom(5), os.urandom(2**20 - 1)],
    "one array of large parts": [b"head", *(os.urandom(524_288 + n) for n in range(5))],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_what_is_written_is_read(parts: list[Any]) -> None:
    """The first part as bytes, the others as buffers of the reader's own."""
    segment = Segments().take()
    span = segment.write([memoryview(part) for part in parts])
    head, *buffers = span.read()
    assert type(head) is bytes
    assert [head, *map(bytes, buffers)] == list(map(bytes, parts))
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
    assert list(map(bytes, span.read())) == list(map(bytes, parts)), "a reader wrote into the segment"


def test_results_go_behind_the_elements() -> None:
    """Both are whole, also where the segment grows between them."""
    segment = Segments().take()
    elements = segment.write([b"e" * 5000, b"E" * 70_000])
    results = write(segment.address, elements.end, [b"r" * 10, b"R" * 3 * MB])
    assert results.offset >= elements.offset + 75_000
    assert elements.read() == [b"e" * 5000, b"E" * 70_000]
    assert results.read() == [b"r" * 10, b"R" * 3 * MB]


def test_a_segment_that_grew_is_used_again() -> None:
    pool = Segments()
    first = pool.take()
    first.write([bytes(3 * MB)])
    first.give_back()
    again = pool.take()
    assert again is first
    assert pool.take() is not first, "it is lent to one at a time"
    assert again.write([b"small"]).read() == [b"small"]
    assert again.write([b"x" * 9 * MB]).read() == [b"x" * 9 * MB]


def test_an_address_of_an_earlier_use_is_refused() -> None:
    """Neither read nor written: the memory belongs to another partition by then."""
    pool = Segments()
    segment = pool.take()
    old = segment.write([b"old"])
    segment.give_back()
    assert pool.take() is segment
    new = segment.write([b"new"])
    with pytest.raises(OSError):
        old.read()
    with pytest.raises(OSError):
        write(old.address, old.offset, [b"bad"])
    assert new.read() == [b"new"]


def test_a_segment_that_is_used_anew_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segments().take()
    span = segment.write([b"head", bytes(70_000)])
    allocate = segments._allocate

    def meanwhile(sizes: Any) -> Any:
        segment.renew()
        return allocate(sizes)

    monkeypatch.setattr(segments, "_allocate", meanwhile)
    with pytest.raises(OSError):
        span.read()


def test_a_segment_that_a_late_worker_writes_to_is_not_lent() -> None:
    """A task ran twice: its second run writes when the first one's results are here already."""
    pool = Segments()
    segment = pool.take()
    address = segment.address
    segment.give_back()
    writing = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR)
    fcntl.flock(writing, fcntl.LOCK_SH)
    try:
        other = pool.take()
        assert other is not segment
        assert other.write([b"right"]).read() == [b"right"]
    finally:
        os.close(writing)


def test_a_segment_with_the_descriptor_of_an_earlier_one_is_another() -> None:
    """A worker may have mapped the one that its owner has closed since."""
    first = Segments().take()
    first.write([b"first"])
    (key,) = [key for key in segments._mappings if key[1] == first.address.descriptor]
    mapping = segments._mappings[key]
    del first
    second = Segments().take()
    assert (second.address.pid, second.address.descriptor) == key
    segments._mappings[key] = mapping
    assert second.write([b"second"]).read() == [b"second"]


def test_what_is_kept_of_an_array_keeps_its_memory() -> None:
    """Private memory is used again when the last view of it is gone, and not before."""
    segment = Segments().take()

    def read(number: int) -> Any:
        span = segment.write([b"", bytes([number]) * 3 * MB, bytes([number + 1]) * 3 * MB])
        return span.read()[1:]

    kept = [np.frombuffer(read(10 * number)[number % 2], np.uint8)[5:9] for number in range(1, 8)]
    for _ in range(5):
        read(200)
    assert [array.tolist() for array in kept] == [[10 * n + n % 2] * 4 for n in range(1, 8)]


def test_a_segment_that_is_dropped_is_closed() -> None:
    before = memory_files()
    pool = Segments()
    lent = pool.take()
    lent.write([bytes(MB)])
    assert len(memory_files() - before) == 1
    del lent
    assert memory_files() <= before, "one that was lent and never came back"
    idle = pool.take()
    idle.write([bytes(MB)])
    idle.give_back()
    del idle
    assert len(memory_files() - before) == 1
    pool.close()
    assert memory_files() <= before, "one that was idle when its engine was closed"


def test_idle_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six that hold 1.5 MB each, two fit in 4 MiB, and the others are freed."""
    assert segments.IDLE_BYTES <= 256 * 2**20
    monkeypatch.setattr(segments, "IDLE_BYTES", 4 * 2**20)
    pool = Segments()
    lent = [pool.take() for _ in range(6)]
    for segment in lent:
        segment.write([bytes(1_500_000)])
    for segment in lent:
        segment.give_back()
    again = [pool.take() for _ in range(6)]
    assert sum(one is other for one in lent for other in again) == 2


def in_fork(call: Callable[[], object]) -> int:
    """Return how a fork of this process ended after `call`: 0 where it returned something true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of processes with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if call() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_gets_none_of_its_parent_s_segments() -> None:
    """Both would write into the same one, as each thinks that it is free."""
    pool = Segments()
    pool.take().give_back()

    def refused() -> bool:
        try:
            pool.take()
        except OSError as error:
            return "forked" in str(error)
        return False

    assert in_fork(refused) == 0
    assert pool.take().write([b"ours"]).read() == [b"ours"]


OTHER_PROCESS = """
import pickle, sys
from parcoll.wire.segments import write
span = pickle.load(sys.stdin.buffer)
head, buffer = span.read()
buffer[:1] = b"!"
pickle.dump(write(span.address, span.end, [head[::-1], bytes(buffer) * 4]), sys.stdout.buffer)
try:
    span._replace(address=span.address._replace(token=b"t" * 16)).read()
except OSError:
    sys.exit(0)
"""


def test_another_process_reads_and_writes_it_by_its_address() -> None:
    """And makes it longer where its results need that."""
    segment = Segments().take()
    span = segment.write([b"abc", b"z" * MB])
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        input=pickle.dumps(span),
        capture_output=True,
        env=clean_environment(),
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    result = pickle.loads(ended.stdout)
    assert isinstance(result, Span)
    assert result.read() == [b"cba", (b"!" + b"z" * (MB - 1)) * 4]
    assert span.read() == [b"abc", b"z" * MB]


def test_a_closed_segment_that_is_given_back_touches_no_other_file(tmp_path: Path) -> None:
    """The garbage collector closes it first where it finds it together with the evaluation that has it."""
    pool = Segments()
    for give_back in (segments.Segment.end_use, segments.Segment.give_back):
        segment = pool.take()
        number = segment.address.descriptor
        segment._closing()
        content = tmp_path / "other"
        content.write_bytes(b"")
        other = os.open(content, os.O_RDWR)
        os.dup2(other, number)
        give_back(segment)
        assert pool.take() is not segment
        assert content.read_bytes() == b""
        for descriptor in {other, number}:
            os.close(descriptor)
