"""Codecs: by which compression is a file packed, which package unpacks it, and is it whole?

The name of a file tells, as fsspec takes it. A codec that is not installed is an error that names it.
"""

from __future__ import annotations

import gzip
import importlib
import io
import os
from collections.abc import Callable, Iterable
from typing import Any

from parcoll.chain.failures import makes_apart
from parcoll.text import describe, short_repr

# What the ends of names mean. fsspec knows those alone whose packages are installed.
SUFFIXES = {
    "gz": "gzip",
    "bz2": "bz2",
    "xz": "xz",
    "lzma": "lzma",
    "zst": "zstd",
    "lz4": "lz4",
    "zip": "zip",
    "snappy": "snappy",
    "sz": "snappy",
}
# What nobody here can unpack, though names say that it is packed.
_UNREADABLE = {"7z": "7-Zip", "br": "brotli", "lz": "lzip", "lzo": "lzo", "rar": "rar"}
# Of which modules one has to be there, and the package to install that has the last one.
PACKAGES = {
    "zstd": (("compression.zstd", "backports.zstd", "zstandard"), "zstandard"),
    "lz4": (("lz4.frame",), "lz4"),
    "snappy": (("snappy",), "python-snappy"),
}
CHUNK = 2**18  # packed bytes that are read at once


def known() -> list[str]:
    """Return the names of all compressions, installed or not."""
    from fsspec.compression import available_compressions  # others may have registered more

    names = {name for name in available_compressions() if name is not None}
    return sorted(names | set(SUFFIXES.values()))


def checked(given: Any) -> str | None:
    """Return a `compression` argument: "infer", a name that is known and installed, or None."""
    if given is None or (isinstance(given, str) and given == "infer"):
        return given
    if not isinstance(given, str) or given not in known():
        kind = ValueError if isinstance(given, str) else TypeError
        names = ", ".join(known())
        raise kind(f'compression must be "infer", None or one of {names}; got {describe(given)}')
    _installed(given, f"compression={given!r}")
    return given


def of(path: str, compression: str | None = "infer") -> str | None:
    """Return the compression of a file, None for none; ModuleNotFoundError if it is not installed."""
    if compression != "infer":
        return compression
    from fsspec.utils import compressions

    suffix = os.path.splitext(path)[1].removeprefix(".").lower()
    name: str | None = compressions.get(suffix) or SUFFIXES.get(suffix)
    if name is None and suffix in _UNREADABLE:
        raise ValueError(
            f"{short_repr(path)} is packed with {_UNREADABLE[suffix]}, which cannot be read here: unpack it, "
            "or pass compression=None if its name says something else"
        )
    if name is not None:
        _installed(name, f"{short_repr(path)} is compressed with {name}, which")
    return name


def check_installed(paths: Iterable[str], compression: str | None) -> None:
    """Fail if a file needs a codec that is not installed."""
    for suffix, path in {os.path.splitext(path)[1]: path for path in paths}.items():
        if suffix:
            of(path, compression)


def _installed(name: str, what: str) -> Any:
    """Return the module of a codec; None where fsspec, or Python, has it."""
    modules, package = PACKAGES.get(name, ((), ""))
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    if modules:
        raise ModuleNotFoundError(
            f"{what} needs the package {package}, here and on the workers: pip install {package}",
            name=modules[-1],
        )
    return None


def reading(file: Any, name: str | None) -> Any:
    """Return a file of the unpacked bytes of a file that is open. Raises EOFError where it was cut short."""
    if name is None:
        return file
    module = _installed(name, f"compression={name!r}")
    if name == "zstd":
        # fsspec's ends after the first frame, and takes a file that was cut short as whole.
        if module.__name__ == "zstandard":
            return _Frames(file, lambda: module.ZstdDecompressor().decompressobj())
        return module.ZstdFile(file)
    if name == "zip":
        return _only_member(file)
    return _codec(name)(file, mode="rb")


def writing(file: Any, name: str | None) -> Any:
    """Return a file that packs what is written to it. To close it ends the packed bytes, and not `file`."""
    if name is None:
        return file
    _installed(name, f"compression={name!r}")
    return _codec(name)(file, mode="wb")


def packed(content: bytes, name: str | None) -> bytes:
    """Return bytes packed. Those of several calls, one behind the other, are one file, but for zip."""
    if name is None:
        return content
    if name == "gzip":
        return gzip.compress(content, mtime=0)  # the same bytes each time
    into = _Kept()
    with writing(into, name) as file:
        file.write(content)
    return into.getvalue()


class _Kept(io.BytesIO):
    """Bytes that stay where a codec closes its file."""

    def close(self) -> None:
        """Stay open."""


def _codec(name: str) -> Callable[..., Any]:
    from fsspec.compression import compr

    if name not in compr:  # fsspec knows some where their packages are installed
        raise ValueError(f"compression {name!r} is not one that fsspec knows here")
    return compr[name]  # type: ignore[no-any-return]


makes_apart(_installed.__code__)


def _only_member(file: Any) -> Any:
    import zipfile

    archive = zipfile.ZipFile(file)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise ValueError(
            f"the zip file has {len(members):,} members, and only one is read as a compressed file: "
            "read_archive() reads all"
        )
    return archive.open(members[0])


class _Frames(io.RawIOBase):
    """The unpacked bytes of frames, one behind the other."""

    def __init__(self, file: Any, make: Callable[[], Any]) -> None:
        self._file = file
        self._make = make
        self._frame: Any = None  # None between two frames
        self._packed = b""
        self._unpacked = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack the next bytes."""
        while not self._unpacked and self._more():
            pass
        size = min(len(buffer), len(self._unpacked))
        buffer[:size], self._unpacked = self._unpacked[:size], self._unpacked[size:]
        return size

    def _more(self) -> bool:
        packed, self._packed = self._packed or self._file.read(CHUNK), b""
        if not packed:
            if self._frame is not None:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            return False
        frame = self._frame = self._frame or self._make()
        self._unpacked = frame.decompress(packed)
        if frame.eof:
            self._frame, self._packed = None, frame.unused_data
        return True
