"""Descriptors: which part of which file is read as one piece, as what, and is the file still that one?

A format is called on a worker with a descriptor, and gives its elements one by one.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parcoll.chain.failures import Broken, stands_between
from parcoll.chain.policy import PLAIN, Policy
from parcoll.chain.steps import FlatMap
from parcoll.files import codecs

LOCAL = -1
# What filesystems say of a file that changes with its content, the surest first.
_VERSIONS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "mtime", "LastModified", "last_modified", "Last-Modified"),
    "updated",
)


class Descriptor(NamedTuple):
    """A part of a file, which is read as one piece. A checkpoint compares all of it.

    Users meet it as the `element` of an `ElementError`, and may open it like a path.
    """

    path: str  # an absolute one, or a URL
    start: int = 0
    end: int | None = None  # the first byte behind it; None for the end of the file
    size: int | None = None  # of the file; None if that is not known
    version: str = ""  # what the filesystem says that changes with the content, and its name before it
    part: Any = None  # a row group, a member
    system: int = LOCAL  # which of the format's filesystems the path is of

    @property
    def nbytes(self) -> int | None:
        """How many bytes of the file it is; None if that is not known, as of a row group."""
        if self.end is not None:
            return self.end - self.start
        return self.size if self.part is None else getattr(self.part, "packed", None)

    def __fspath__(self) -> str:
        """Return the path of the file, for `open` and `Path`."""
        return self.path

    def __repr__(self) -> str:
        if self.part is not None:
            return f"{self.path!r} {self.part}"
        if not self.start and self.end is None:
            return repr(self.path)
        return f"{self.path!r} from byte {self.start} to {self.end}"


def described(path: str, info: Mapping[str, Any], system: int) -> Descriptor:
    """Return the descriptor of a whole file, from what its filesystem says of it."""
    size = info.get("size")
    version = next(filter(None, (_version(info, name) for name in _VERSIONS)), "")
    return Descriptor(path, size=size if isinstance(size, int) else None, version=version, system=system)


def _version(info: Mapping[str, Any], name: str) -> str:
    found = info.get(name)
    if isinstance(found, datetime.datetime):  # in one zone, whatever it was asked for
        found = found.timestamp()
    return "" if found is None else f"{name}: {found}"


def described_here(path: str, found: os.stat_result) -> Descriptor:
    """Return the descriptor of a whole file of this machine."""
    made_when_read = not found.st_size and path.startswith(("/proc/", "/sys/"))
    if made_when_read or not stat.S_ISREG(found.st_mode):  # nor has a pipe a size
        return Descriptor(path)
    return Descriptor(path, size=found.st_size, version=f"mtime: {found.st_mtime_ns}")


@contextlib.contextmanager
def opened(descriptor: Descriptor, systems: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Open the file of a descriptor; OSError if it is another one than was listed."""
    import fsspec  # 0.04 s of a script's start

    path, local = descriptor.path, descriptor.system == LOCAL
    system = fsspec.filesystem("file") if local else systems[descriptor.system]
    if not local:  # what this process may have listed before
        system.invalidate_cache(os.path.dirname(path))
    try:
        unsized = local and descriptor.size is None  # a pipe, in which fsspec would look for its end
        file: Any = open(path, "rb") if unsized else system.open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        if descriptor.size is None:
            raise
        if "memory" in (system.protocol, *system.protocol):
            raise FileNotFoundError(
                f"{path!r} lies in the memory of the process that has listed it, and not in this worker's: "
                'evaluate within connect("inline"), or copy it to a disk that the workers see'
            ) from error
        raise FileNotFoundError(f"{path!r} was there when the files were listed, and now is not") from error
    with file:
        known = descriptor.size is not None or bool(descriptor.version)
        if known:
            _compare(descriptor, _now(system, file, descriptor))
        yield file
        if known and local:  # somebody may have written to it meanwhile
            _compare(descriptor, _now(system, file, descriptor))


def _now(system: Any, file: Any, listed: Descriptor) -> Descriptor:
    if listed.system == LOCAL:
        try:
            return described_here(listed.path, os.fstat(file.fileno()))
        except (AttributeError, OSError):
            return described_here(listed.path, os.stat(listed.path))
    name = listed.version.partition(": ")[0]
    info = getattr(file, "details", None)  # what was asked for when it was opened
    if not isinstance(info, dict) or info.get("size") is None or (name and name not in info):
        info = system.info(listed.path)
    size = info.get("size")
    return listed._replace(size=size if isinstance(size, int) else None, version=_version(info, name))


def _compare(listed: Descriptor, now: Descriptor) -> None:
    if None not in (listed.size, now.size) and listed.size != now.size:
        what = f"it had {listed.size:,} bytes, and has {now.size:,}"
    elif listed.version and now.version and listed.version != now.version:
        what = f"its {listed.version}, and now {now.version.partition(': ')[2]}"
    else:
        return
    raise OSError(
        f"{listed.path!r} has changed since the files were listed ({what}): call the function that reads it "
        "again, or evaluate again, when nobody writes to it"
    )


def tell(error: BaseException, where: str) -> None:
    """Add to an exception of reading which file it was, unless it says so."""
    if not any(where in note for note in getattr(error, "__notes__", ())):
        error.add_note(f"while reading {where}")
        if isinstance(error, UnicodeDecodeError):
            error.add_note('pass the encoding that the file has, as in encoding="latin-1"')


@dataclass(frozen=True)
class Format:
    """What a worker makes of a descriptor. A subclass says how it is read."""

    name: str  # the function that users call
    systems: tuple[Any, ...] = ()
    compression: str | None = "infer"
    include_path: bool = False
    goes_on: bool = field(default=False, kw_only=True)  # behind a line that is `Broken`

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, descriptor: Descriptor) -> Iterator[Any]:
        """Return the elements."""
        elements = self.elements(descriptor)
        if not self.include_path:
            return elements
        if not self.goes_on:
            return zip(elements, itertools.repeat(descriptor.path))
        return (one if type(one) is Broken else (one, descriptor.path) for one in elements)

    def elements(self, descriptor: Descriptor) -> Iterator[Any]:
        """Give the elements, one by one."""
        raise NotImplementedError

    @contextlib.contextmanager
    def unpacked(self, descriptor: Descriptor) -> Iterator[Any]:
        """Open the file of a descriptor, and unpack it."""
        with opened(descriptor, self.systems) as file:
            yield codecs.reading(file, codecs.of(descriptor.path, self.compression))


class Read(FlatMap):
    """The elements of each descriptor: the first step of what reads files."""

    kind = "read"
    by_user = False
    resumes = True

    def __init__(self, format: Format, policy: Policy = PLAIN) -> None:
        super().__init__(format, policy)
        self._name = format.name

    @property
    def compared(self) -> Any:
        """How it reads; not by which filesystems, whose keys may be others each day."""
        format = self.func
        assert isinstance(format, Format)
        settings = {name: value for name, value in vars(format).items() if name not in ("systems", "goes_on")}
        return type(format).__name__, settings

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Nothing: `compared` has them."""
        return {}

    @property
    def label(self) -> str:
        """The function that users call."""
        return self._name

    @property
    def title(self) -> str:
        """The same."""
        return self._name

    @property
    def words(self) -> str:
        """The same, for the key of a task."""
        return self._name.replace("_", "-")


stands_between(Format.__call__.__code__.co_filename)
