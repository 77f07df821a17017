"""Compressing: bytes on their way into a file, by the end of its name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

# What is compressed at once. The bytes of a file must not depend on how they came.
BLOCK = 1 << 20

# The end of a name, and the packages of which one is needed.
KNOWN = {
    "gz": ("zlib",),
    "bz2": ("bz2",),
    "xz": ("lzma",),
    "lzma": ("lzma",),
    "zst": ("compression.zstd", "zstandard"),
    "lz4": ("lz4.frame",),
}
NAMES = {name: name for name in KNOWN} | {"gzip": "gz", "zstd": "zst"}
# What ends of names say that nobody here can pack. Whoever reads such a file would take it for broken.
UNWRITTEN = {"zip", "snappy", "sz", "7z", "br", "lz", "lzo", "rar"}


class Out(Protocol):
    """Where bytes go."""

    def write(self, data: Any, /) -> Any:
        """Take bytes."""

    def close(self) -> None:
        """Write what is left."""


Opener = Callable[[Any], Out]


def opener(name: str, given: Any) -> Opener | None:
    """Return what compresses into a file of this name; None if nothing does.

    Raises ModuleNotFoundError if a package is missing.
    """
    if given is None:
        return None
    kind = NAMES.get(given) if isinstance(given, str) else None
    if given == "infer" and isinstance(given, str):
        kind = os.path.splitext(name)[1].removeprefix(".").lower()
        if kind in UNWRITTEN:
            raise ValueError(
                f"{name!r} says by its end that it is packed as {kind}, which cannot be written: end it with "
                f"{', '.join(KNOWN)}, or pass compression=None"
            )
        if kind not in KNOWN:
            return None
    elif kind is None:
        names = ", ".join(sorted(NAMES))
        wrong = ValueError if isinstance(given, str) else TypeError
        raise wrong(f'compression must be "infer", None or one of {names}, got {given!r}')
    module = _found(KNOWN[kind])
    if module is None:
        package = KNOWN[kind][-1].partition(".")[0]
        raise ModuleNotFoundError(
            f"{name!r} is to be compressed with {kind}, which needs the package {package}: install it, or "
            "choose another compression",
            name=package,
        )
    return lambda file: _Compressed(_MAKE[kind](module), file)


def _found(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


class _Compressed:
    """Compresses bytes in blocks of one size. Dropped before its end, it writes nothing."""

    def __init__(self, compressor: Any, file: Out) -> None:
        self._compressor = compressor
        self._file = file
        self._held = bytearray()

    def write(self, data: Any) -> None:
        """Take bytes."""
        self._held += data
        if len(self._held) >= BLOCK:
            end = len(self._held) // BLOCK * BLOCK
            with memoryview(self._held) as view:
                for start in range(0, end, BLOCK):
                    self._file.write(self._compressor.compress(view[start : start + BLOCK]))
            del self._held[:end]

    def close(self) -> None:
        """Write what is left."""
        self._file.write(self._compressor.compress(bytes(self._held)))
        self._held.clear()
        self._file.write(self._compressor.flush())


class _Lz4:
    """A compressor of lz4, which has a call for what comes first."""

    def __init__(self, module: Any) -> None:
        self._compressor = module.LZ4FrameCompressor()
        self._first = self._compressor.begin()

    def compress(self, data: Any) -> bytes:
        """Return bytes for these."""
        first, self._first = self._first, b""
        found: bytes = first + self._compressor.compress(data)
        return found

    def flush(self) -> bytes:
        """Return the last bytes."""
        return bytes(self._compressor.flush())


def _zstd(module: Any) -> Any:
    compressor = module.ZstdCompressor()
    return compressor.compressobj() if module.__name__ == "zstandard" else compressor


GZIP = 31  # for zlib: the largest window, in a file of gzip's

_MAKE: dict[str, Callable[[Any], Any]] = {
    # Neither a name nor a time is in the file: its bytes are the same whenever it is written.
    "gz": lambda zlib: zlib.compressobj(6, zlib.DEFLATED, GZIP),
    "bz2": lambda bz2: bz2.BZ2Compressor(),
    "xz": lambda lzma: lzma.LZMACompressor(),
    "lzma": lambda lzma: lzma.LZMACompressor(lzma.FORMAT_ALONE),
    "zst": _zstd,
    "lz4": _Lz4,
}
