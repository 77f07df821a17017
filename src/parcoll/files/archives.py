"""Archives: how are the members of zip and tar files read?

Each member of a zip file is read on its own, where the directory of the file says that it lies. A tar file
has no directory, and is read from its start to its end.
"""

from __future__ import annotations

import bz2
import contextlib
import fnmatch
import itertools
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from parcoll.chain.failures import stands_between
from parcoll.files import codecs
from parcoll.files.descriptors import Descriptor, Format, opened, tell

_TAR_SUFFIXES = {".tar": None, ".tgz": "gzip", ".tbz2": "bz2", ".tbz": "bz2", ".txz": "xz", ".tzst": "zstd"}
_HEADER = struct.Struct("<4s5H3L2H")  # of a member, before its name
_ZIP = b"PK\3\4"  # what a zip file begins with, as each of its members does
_USTAR = slice(257, 262)  # where a tar file says that it is one
_UNIX = 3  # the system of a member that has the mode of a file
_ENCRYPTED = 0x1
_DAMAGED = ("InvalidHeaderError", "TruncatedHeaderError")  # those that are not the end of an archive


class Member(NamedTuple):
    """What the directory of a zip file says of a member."""

    name: str
    crc: int
    method: int
    flags: int
    packed: int  # bytes
    size: int

    def __repr__(self) -> str:
        return f"member {self.name!r}"


def compression_of(path: str) -> tuple[bool, str | None]:
    """Tell whether the name of an archive says that it is a tar file, and how that is packed."""
    lower = path.lower()
    for suffix, name in _TAR_SUFFIXES.items():
        if lower.endswith(suffix):
            return True, name and codecs.of("x" + suffix, name)
    if ".tar." in lower:
        return True, codecs.of(path)
    return False, None


@dataclass(frozen=True)
class Members:
    """Cuts zip files into their members, in the order of the file's directory."""

    systems: tuple[Any, ...]
    pattern: str
    goes_on: bool = False  # where a file cannot be cut: its worker says why

    def __call__(self, file: Descriptor) -> list[Descriptor]:
        """Return a descriptor for each member whose name matches; a tar file stays whole."""
        is_tar, name = compression_of(file.path)
        if name is not None:
            codecs.checked(name)
        if is_tar:
            return [file]
        try:
            with opened(file, self.systems) as source:
                begin = source.read(_USTAR.stop)
                is_tar = begin[_USTAR] == b"ustar"  # which may end with a zip file: that is looked for there
                if is_tar or not zipfile.is_zipfile(source):
                    if begin.startswith(_ZIP):
                        raise zipfile.BadZipFile("the zip file has no directory at its end: it was cut short")
                    return [file]
                source.seek(0)
                with zipfile.ZipFile(source) as archive:
                    found = archive.infolist()
        except Exception as error:
            if self.goes_on:
                return [file]
            tell(error, repr(file.path))
            raise
        return [
            file._replace(start=one.header_offset, part=_member(one))
            for one in found
            if not one.is_dir() and not _is_link(one) and fnmatch.fnmatchcase(one.filename, self.pattern)
        ]


def _is_link(found: zipfile.ZipInfo) -> bool:
    """Tell whether a member of a zip file, written on Unix, is a symbolic link."""
    return found.create_system == _UNIX and stat.S_ISLNK(found.external_attr >> 16)


def _member(found: zipfile.ZipInfo) -> Member:
    return Member(
        found.filename, found.CRC, found.compress_type, found.flag_bits, found.compress_size, found.file_size
    )


@dataclass(frozen=True)
class Archive(Format):
    """The members of an archive: their names, and what is in them."""

    pattern: str = "*"

    def elements(self, descriptor: Descriptor) -> Iterator[tuple[str, bytes]]:
        """Give name and content of each."""
        given: str | None = None
        try:
            parts = [descriptor]
            if descriptor.part is None and self.goes_on:  # it could not be cut
                parts = Members(self.systems, self.pattern)(descriptor)
            for part in parts:
                for name, content in self._of_zip(part) if part.part is not None else self._of_tar(part):
                    yield name, content
                    given = name
        except Exception as error:
            tell(error, repr(descriptor) if given is None else f"{descriptor!r} behind member {given!r}")
            raise

    def _of_zip(self, descriptor: Descriptor) -> Iterator[tuple[str, bytes]]:
        with opened(descriptor, self.systems) as file:
            content = _unpacked(file, descriptor.start, descriptor.part)
        yield descriptor.part.name, content

    def _of_tar(self, descriptor: Descriptor) -> Iterator[tuple[str, bytes]]:
        # The number of the member that has what is in the file of this name; None for what is no file.
        files: dict[str, int | None] = {}
        for number, (archive, member) in enumerate(self._tar(descriptor)):
            name = posixpath.normpath(member.name)
            if member.islnk():
                target = posixpath.normpath(member.linkname)
                if target in files:
                    files[name] = files[target]
                else:
                    files.pop(name, None)
            else:
                files[name] = number if member.isfile() else None
            if not fnmatch.fnmatchcase(member.name, self.pattern):
                continue
            if member.islnk():
                if name not in files:
                    raise tarfile.ReadError(
                        f"the archive has no member {member.linkname!r}, to which another one is a link"
                    )
                if (wanted := files[name]) is not None:
                    yield member.name, self._linked(descriptor, wanted)
            elif member.isfile():
                yield member.name, _content(archive, member)

    def _tar(self, descriptor: Descriptor) -> Generator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        is_tar, name = compression_of(descriptor.path)
        with opened(descriptor, self.systems) as file:
            source = codecs.reading(file, name)
            try:
                mode: Literal["r|", "r|*"] = "r|" if is_tar else "r|*"
                opened_tar = tarfile.open(fileobj=source, mode=mode, tarinfo=_Header)  # noqa: SIM115 - closed below
            except tarfile.ReadError as error:
                if is_tar:
                    raise
                raise tarfile.ReadError(f"it is neither a zip file nor a tar file ({error})") from error
            with opened_tar as archive:
                for member in archive:
                    yield archive, member
            while name is not None and source.read(codecs.CHUNK):  # at its end, it tells what is damaged
                pass

    def _linked(self, descriptor: Descriptor, wanted: int) -> bytes:
        """Return what is in the member of this number."""
        with contextlib.closing(self._tar(descriptor)) as members:
            return _content(*next(itertools.islice(members, wanted, None)))


class _Header(tarfile.TarInfo):
    """A header, of which a damaged one is an error, also behind others: `tarfile` takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next one."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ not in _DAMAGED:
                raise
            raise tarfile.ReadError(str(error)) from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None
    return content.read()


def _unpacked(file: Any, at: int, member: Member) -> bytes:
    """Return what is in a member of a zip file that begins at `at`."""
    if member.flags & _ENCRYPTED:
        raise RuntimeError(f"the member {member.name!r} is encrypted")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(file) as archive:  # several may have this name
            return archive.read(next(one for one in archive.infolist() if one.header_offset == at))
    file.seek(at)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_ZIP):
        raise zipfile.BadZipFile(f"Bad magic number for file header of {member.name!r}")
    *_, name, extra = _HEADER.unpack(head)
    file.seek(at + _HEADER.size + name + extra)
    packed = file.read(member.packed)
    if member.method == zipfile.ZIP_DEFLATED:
        content = zlib.decompress(packed, -zlib.MAX_WBITS)
    else:
        content = bz2.decompress(packed) if member.method == zipfile.ZIP_BZIP2 else packed
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.name!r}")
    return content


stands_between(Archive.elements.__code__.co_filename)
