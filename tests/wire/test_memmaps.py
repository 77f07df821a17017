"""Arrays in memory maps as they travel: as places in files on this machine, as copies to others."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import tempfile
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from parcoll import SerializationError
from parcoll.wire import memmaps
from parcoll.wire.payload import Packed

numpy = pytest.importorskip("numpy")
ON_LINUX = Path("/proc/self/maps").exists()

VIEWS = {
    "all": lambda whole: whole,
    "rows": lambda whole: whole[3:],
    "one row": lambda whole: whole[-1],
    "every other column": lambda whole: whole[:, ::2],
    "backwards": lambda whole: whole[::-1, ::-3],
    "turned": lambda whole: whole.T,
    "bytes": lambda whole: whole.view("u1"),
    "a plain array": lambda whole: numpy.asarray(whole)[2:5],
    "a plain array of a view": lambda whole: numpy.asarray(whole[2:])[:, 1:],
    "records": lambda whole: whole.view([("x", "f8"), ("y", "f8")]).view(numpy.recarray),
    "in another shape": lambda whole: whole.reshape(-1),
    "nothing": lambda whole: whole[:0],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    numpy.arange(1000.0).tofile(tmp_path / "numbers")
    return tmp_path / "numbers"


def travelled(value: Any, here: bool = True) -> Any:
    with memmaps.sent(here=here):
        packed = Packed.pack(value)
    if here:
        assert packed.nbytes < 1500, "a reference"
    return packed.load()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("offset", [0, 8, 4096])
def test_a_view_arrives_as_the_same_view(path: Path, view: str, offset: int) -> None:
    whole = numpy.memmap(path, float, "r+", offset, (12, 10))
    sent = VIEWS[view](whole)
    arrived = travelled(sent)
    assert type(arrived) is type(sent)
    assert (arrived.shape, arrived.strides, arrived.dtype) == (sent.shape, sent.strides, sent.dtype)
    assert (arrived == sent).all()
    if sent.size:
        arrived[...] = 1
        assert (sent == arrived).all(), "they are the same memory"
    if isinstance(sent, numpy.memmap):
        assert (arrived.mode, arrived.offset) == ("r+", offset)
        assert os.path.samefile(arrived.filename, path)
        arrived.flush()
        again = travelled(arrived)
        assert (again == sent).all()


def test_what_cannot_be_written_arrives_so(path: Path) -> None:
    arrived = travelled(numpy.memmap(path, float, "r"))
    assert not arrived.flags.writeable
    assert arrived.mode == "r"
    closed = numpy.memmap(path, float, "r+")
    closed.flags.writeable = False
    assert not travelled(closed).flags.writeable


def test_a_new_file_is_not_emptied_again(tmp_path: Path) -> None:
    new = numpy.memmap(tmp_path / "new", "i4", "w+", shape=(100,))
    new[:] = range(100)
    arrived = travelled(new)
    assert arrived.mode == "r+"
    arrived[0] = -1
    assert new.tolist() == [-1, *range(1, 100)]


def test_a_file_of_numpy_s_own_format(tmp_path: Path) -> None:
    numpy.save(tmp_path / "saved.npy", numpy.arange(2000).reshape(50, 40))
    saved = numpy.load(tmp_path / "saved.npy", mmap_mode="r+")
    travelled(saved[10:])[0, 0] = -1
    assert saved[10, 0] == -1


def test_copy_on_write_stays_so(path: Path) -> None:
    private = numpy.memmap(path, float, "c")
    if ON_LINUX:
        arrived, other = travelled(private), travelled(private)
        assert arrived.mode == "c"
        arrived[:] = 0
        assert private[5] == other[5] == 5
    private[7] = -7
    with memmaps.sent(here=True):
        written = Packed.pack(private)
    assert (written.load()[7], written.load().mode) == (-7, "c")
    assert numpy.fromfile(path)[7] == 7


@pytest.mark.skipif(not ON_LINUX, reason="only Linux tells whether somebody has written into it")
def test_two_views_of_one_map_arrive_as_two_of_one(path: Path) -> None:
    private = numpy.memmap(path, float, "c")
    first, second = travelled([private[:10], private[5:]])
    first[5] = -1
    assert second[0] == -1


@pytest.mark.skipif(not ON_LINUX, reason="only Linux tells what a map without a name shows")
@pytest.mark.parametrize("access", [mmap.ACCESS_WRITE, mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_an_array_in_a_map_of_one_s_own(path: Path, access: int) -> None:
    with open(path, "r+b") as file:
        own = mmap.mmap(file.fileno(), 3904, access=access, offset=4096)
    for sent in (numpy.frombuffer(own, float, 100, 16), numpy.ndarray((100,), float, memoryview(own), 16)):
        arrived = travelled(sent)
        assert type(arrived) is numpy.ndarray
        assert (arrived == sent).all()
        assert arrived.flags.writeable is sent.flags.writeable
        if access == mmap.ACCESS_WRITE:
            arrived[3] = -3
            assert sent[3] == -3


@pytest.mark.skipif(not ON_LINUX, reason="elsewhere it has no file")
def test_an_array_in_shared_memory_that_has_a_name() -> None:
    tracked = resource_tracker._resource_tracker._pid is not None
    shared = SharedMemory(create=True, size=80_000)
    try:
        sent = numpy.ndarray((100, 100), float, shared.buf)
        travelled(sent[1:])[0, 5] = 5
        assert sent[1, 5] == 5
        del sent
    finally:
        shared.close()
        shared.unlink()
        if not tracked:
            resource_tracker._resource_tracker._stop()


@pytest.mark.skipif(not ON_LINUX, reason="elsewhere it travels as its content")
def test_a_file_without_a_name_is_the_same_file() -> None:
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as other:
        mapped = numpy.memmap(file, "i8", "w+", shape=(1000,))
        numpy.memmap(other, "i8", "w+", shape=(1000,))
        arrived = travelled(mapped)
        arrived[7] = 7
        assert mapped[7] == 7


@pytest.mark.parametrize("loss", ["removed", "replaced"])
def test_a_file_that_is_gone_before_is_not_lost(path: Path, loss: str) -> None:
    mapped = numpy.memmap(path, float, "r+")
    mapped[1] = -1
    if loss == "removed":
        path.unlink()
    else:
        (path.parent / "other").write_bytes(bytes(8000))
        os.replace(path.parent / "other", path)
    with memmaps.sent(here=True):
        assert (Packed.pack(mapped).load() == mapped).all()


@pytest.mark.parametrize(
    ("loss", "said"), [("remove", "is gone"), ("replace", "is another one"), ("cut", "cut to 80 bytes")]
)
def test_a_file_that_changes_meanwhile_is_an_error(path: Path, loss: str, said: str) -> None:
    with memmaps.sent(here=True):
        packed = Packed.pack(numpy.memmap(path, float, "r+")[5:])
    if loss == "remove":
        path.unlink()
    elif loss == "cut":
        os.truncate(path, 80)
    else:
        (path.parent / "other").write_bytes(bytes(8000))
        os.replace(path.parent / "other", path)
    with pytest.raises(SerializationError, match=f"numbers', of which an array is a memory map, .*{said}"):
        packed.load()


def test_a_file_that_was_renamed_is_found(path: Path) -> None:
    mapped = numpy.memmap(path, float, "r+")
    path.rename(path.with_name("re named"))
    if ON_LINUX:
        assert (travelled(mapped) == mapped).all()


def test_arrays_that_are_no_maps_are_untouched() -> None:
    plain = numpy.arange(20).reshape(4, 5)
    anonymous = numpy.frombuffer(mmap.mmap(-1, 4096), "u1")
    for array in (plain, plain[1:], plain.T, plain[:, ::2], numpy.frombuffer(b"12345678", "u2"), anonymous):
        for here in (True, False):
            with memmaps.sent(here=here):
                arrived = Packed.pack(array).load()
            assert type(arrived) is numpy.ndarray
            assert (arrived == array).all()


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_copy_says_that_it_is_one(path: Path, mode: str) -> None:
    mapped = numpy.memmap(path, float, mode, shape=(10, 10))
    for sent in (mapped, mapped[2:, ::3]):
        arrived = travelled(sent, here=False)
        assert isinstance(arrived, numpy.memmap)
        assert arrived.mode == "c"
        assert (arrived == sent).all()
        assert arrived.flags.writeable is (mode != "r")
        if mode != "r":
            arrived[:] = -1
    assert (numpy.fromfile(path) == numpy.arange(1000.0)).all()


def test_the_log_tells_once_of_a_copy_that_may_be_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "parcoll")
    travelled(numpy.memmap(path, float, "r"), here=False)
    assert caplog.messages == []
    for _ in range(2):
        travelled(numpy.asarray(numpy.memmap(path, float, "r+")), here=False)
    (said,) = caplog.messages
    assert f"the memory map of {str(path)!r} goes to workers" in said


def test_without_being_asked_nothing_changes(path: Path) -> None:
    arrived = Packed.pack(numpy.memmap(path, float, "r+")).load()
    assert (arrived == numpy.arange(1000.0)).all()
    assert pickle.loads(pickle.dumps(numpy.memmap(path, float, "r+")))[3] == 3
