"""Compressing: bytes on their way into a file, by the end of its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

# What is compressed at once. The bytes of a file must not depend on how they came.
BLOCK = 1 << 20

# The end of a name, and the packages of which one is needed.
KNOWN = {
    "gz": ("gzip",),
    "bz2": ("bz2",),
    "xz": ("lzma",),
    "zst": ("compression.zstd", "zstandard"),
    "lz4": ("lz4.frame",),
}
NAMES = {"gzip": "gz", "gz": "gz", "bz2": "bz2", "xz": "xz", "zst": "zst", "zstd": "zst", "lz4": "lz4"}


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
        kind = name.rpartition(".")[2].lower()
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
    return lambda file: _InBlocks(_OPEN[kind](module, file))


def _found(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


class _InBlocks:
    """Passes bytes on in blocks of one size."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._held = bytearray()

    def write(self, data: Any) -> None:
        """Take bytes."""
        self._held += data
        if len(self._held) >= BLOCK:
            end = len(self._held) // BLOCK * BLOCK
            with memoryview(self._held) as view:
                for start in range(0, end, BLOCK):
                    self._out.write(view[start : start + BLOCK])
            del self._held[:end]

    def close(self) -> None:
        """Write what is left."""
        self._out.write(bytes(self._held))
        self._held.clear()
        self._out.close()


def _zstd(module: Any, file: Any) -> Out:
    if module.__name__ == "zstandard":
        return module.ZstdCompressor().stream_writer(file, closefd=False)  # type: ignore[no-any-return]
    return module.ZstdFile(file, "wb")  # type: ignore[no-any-return]


_OPEN: dict[str, Callable[[Any, Any], Any]] = {
    # Neither name nor time in the file: its bytes are the same whenever it is written.
    "gz": lambda module, file: module.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0),
    "bz2": lambda module, file: module.BZ2File(file, "wb"),
    "xz": lambda module, file: module.LZMAFile(file, "wb"),
    "zst": _zstd,
    "lz4": lambda module, file: module.open(file, "wb"),
}
