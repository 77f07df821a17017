"""Texts: how do the bytes of a file become lines, however it is cut? And how is a file read whole?

A line belongs to the part of the file in which it begins. Parts are cut before they are decoded, so that an
encoding must show where lines end. Lines are made some tens of kB at a time: what was decoded is right up to
the line that cannot be.
"""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from parcoll.chain.failures import stands_between
from parcoll.files import codecs as packing
from parcoll.files.descriptors import Descriptor, Format, tell
from parcoll.text import short_repr

CHUNK = 2**16  # bytes that are read at once: their lines stay in the cache of a core
TAIL = 2**13  # bytes that are read at once to find the end of a line that goes on behind its part
BOM = codecs.BOM_UTF8
UTF8 = ("utf_8", "utf_8_sig")
# Encodings in which what a byte means depends on those before it, also on those of the lines before.
_DEPENDING = ("hz", "idna", "iso2022", "punycode", "raw_unicode_escape", "unicode_escape", "utf_7")
# Encodings of one or several bytes a character, in none of which the second one may be a line end.
_SEVERAL_BYTES = ("big5", "cp932", "cp949", "cp950", "euc", "gb", "johab", "shift_jis")
# Where `str.splitlines` ends lines, and a file does not.
_OTHER_ENDS = "\x0b\x0c\x1c\x1d\x1e"
_OTHER_ENDS_BEYOND_ASCII = "\x85\u2028\u2029"


def can_be_cut(encoding: str, end: str) -> bool:
    """Tell whether lines that end so can be told before they are decoded."""
    try:
        if end.encode().decode(encoding) != end:
            return False
    except UnicodeError:
        return False
    name = codecs.lookup(encoding).name.replace("-", "_")
    if name.startswith(_DEPENDING):
        return False
    if name in UTF8:
        return True
    if name.startswith(_SEVERAL_BYTES):
        return end == "\n"
    every = bytes(range(256))
    decoded = every.decode(encoding, "replace")  # one character for each byte
    return len(decoded) == 256 and decoded[:128] == every[:128].decode("ascii")


def overlaps(end: str | bytes) -> bool:
    """Tell whether a delimiter may begin within itself, as one of two line ends does in three of them."""
    return any(end[:n] == end[-n:] for n in range(1, len(end)))


def _behind_last(content: Any, end: Any, start: int = 0, stop: int | None = None) -> int:
    """Return where the last line ends that `content` has whole, if none ends before `start`; or 0.

    Lines are told from the first one on: of three line ends, the first two may be a delimiter.
    """
    stop = len(content) if stop is None else stop
    if not overlaps(end):
        found = content.rfind(end, start, stop)
        return found + len(end) if found >= 0 else 0
    *ended, last = content[start:stop].split(end)
    return stop - len(last) if ended else 0


@dataclass(frozen=True)
class Lines(Format):
    """The lines of a text."""

    encoding: str = "utf-8"
    errors: str = "strict"
    linedelimiter: str | None = None

    @property
    def end(self) -> str:
        """What ends a line at which the file is cut."""
        return self.linedelimiter or "\n"

    def elements(self, descriptor: Descriptor) -> Iterator[str]:
        """Give the lines."""
        return itertools.chain.from_iterable(self.runs(descriptor))

    def runs(self, descriptor: Descriptor) -> Iterator[list[str]]:
        """Give the lines, some together."""
        given = 0
        try:
            with self.unpacked(descriptor) as file:
                cut = can_be_cut(self.encoding, self.end)
                for run in self._in_bytes(file, descriptor) if cut else self._in_text(file):
                    yield run
                    given += len(run)
        except Exception as error:
            where = place(descriptor, given + 1)
            if isinstance(error, OSError) and not given:
                where = repr(descriptor.path)
            if isinstance(error, UnicodeDecodeError) and (byte := getattr(error, "_byte", None)) is not None:
                where += f", byte {byte}"
                del error._byte  # type: ignore[attr-defined]
            tell(error, where)
            raise

    def _in_bytes(self, file: Any, descriptor: Descriptor) -> Iterator[list[str]]:
        encoding, has_mark = self.encoding, False
        if codecs.lookup(encoding).name == "utf-8-sig":
            encoding, has_mark = "utf-8", not descriptor.start
        if descriptor.end is None and packing.of(descriptor.path, self.compression) is None:
            descriptor = descriptor._replace(end=descriptor.size)  # and not what is added while it is read
        universal = self.linedelimiter in (None, "")
        for position, content in _whole_lines(file, descriptor, self.end.encode(), universal):
            if has_mark and content.startswith(BOM):
                del content[: len(BOM)]
                position += len(BOM)
            has_mark = False
            try:
                text = content.decode(encoding, self.errors)
            except UnicodeDecodeError as error:
                begin, behind = self._line_at(content, error.start, universal)
                if begin:
                    yield self._lines(content[:begin].decode(encoding, self.errors))
                line, start, end = bytes(content[begin:behind]), error.start - begin, error.end - begin
                found = UnicodeDecodeError(error.encoding, line, start, end, error.reason)
                found._byte = position + error.start  # type: ignore[attr-defined]
                raise found from None
            yield self._lines(text)

    def _line_at(self, content: bytearray, position: int, universal: bool) -> tuple[int, int]:
        """Return where the line begins and ends that has a byte."""
        ends = [self.end.encode(), b"\r"] if universal else [self.end.encode()]
        before = [_behind_last(content, end, 0, position) for end in ends]
        behind = [found for end in ends if (found := content.find(end, position)) >= 0]
        return max(before), min(behind, default=len(content))

    def _in_text(self, file: Any) -> Iterator[list[str]]:
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        end = self.end
        held: list[str] = []
        read, at = _reads(file), 0
        while chunk := read(CHUNK):
            state, broken = decoder.getstate(), None
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                good = error.start - len(error.object) + len(chunk)  # it may have begun in an earlier chunk
                bad = error.object[error.start : error.end]
                text = _decoded(decoder, state, chunk[: max(good, 0)])
                broken = UnicodeDecodeError(error.encoding, bad, 0, len(bad), error.reason)
                broken._byte = at + good  # type: ignore[attr-defined]
            at += len(chunk)
            before = "".join(held[1 - len(end) :])[1 - len(end) :] if len(end) > 1 else ""
            found = _behind_last(before + text, end)
            if found:
                cut = found - len(before)
                yield self._lines("".join([*held, text[:cut]]))
                held, text = [], text[cut:]
            held += [text] * bool(text)
            if broken is not None:  # behind the lines before
                raise broken
        if last := "".join([*held, decoder.decode(b"", True)]):
            yield self._lines(last)

    def _lines(self, text: str) -> list[str]:
        """Return the lines of a text that ends with one."""
        end = self.linedelimiter
        if end is None:
            return lines_of(text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text)
        if end == "\n":
            return list(io.StringIO(text, newline="\n")) if "\r" in text else lines_of(text)
        if not end:
            return list(io.StringIO(text, newline=""))
        *ended, last = text.split(end)
        return [line + end for line in ended] + [last] * bool(last)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that has no other line ends than `\\n`."""
    others = _OTHER_ENDS if text.isascii() else _OTHER_ENDS + _OTHER_ENDS_BEYOND_ASCII
    for other in others:
        if other in text:
            return list(io.StringIO(text, newline="\n"))
    return text.splitlines(True)


def _decoded(decoder: codecs.IncrementalDecoder, state: tuple[bytes, int], content: bytes) -> str:
    """Return the text of bytes that stand before those which cannot be decoded; none if that is not clear."""
    decoder.setstate(state)
    try:
        return decoder.decode(content)
    except UnicodeError:
        return ""


def place(descriptor: Descriptor, line: int) -> str:
    """Name a line of a file, or of a part of it."""
    if descriptor.start:
        return f"{descriptor.path!r}, line {line:,} of those that begin behind byte {descriptor.start}"
    return f"{descriptor.path!r}, line {line:,}"


def _reads(file: Any) -> Callable[[int], bytes]:
    """Return what reads some bytes: of a packed file, all that stand before those that are damaged."""
    return getattr(file, "read1", None) or file.read  # type: ignore[no-any-return]


def _whole_lines(
    file: Any, descriptor: Descriptor, end: bytes, universal: bool
) -> Iterator[tuple[int, bytearray]]:
    """Give the bytes of the lines that begin in a part of a file, and where they stand.

    Each piece but the last one ends where a line does. With `universal`, it may be one that `\\r` ends.
    """
    start, stop, length, read = descriptor.start, descriptor.end, len(end), _reads(file)
    held = bytearray()
    at = max(start - length, 0)  # where what is held begins
    if at:
        file.seek(at)
    if start:  # the first line begins behind the first end that lies here, or just before
        while (found := held.find(end)) < 0:
            at += max(len(held) - length + 1, 0)
            del held[: max(len(held) - length + 1, 0)]
            left = CHUNK if stop is None else stop - at - len(held)
            if left <= 0 or not (more := read(min(CHUNK, left))):  # no line begins here
                return
            held += more
        at += found + length
        del held[: found + length]
    seen = 0  # bytes of what is held that have no end in them
    while stop is None or at < stop:
        if stop is not None and at + len(held) >= stop:
            yield from _last_lines(read, held, at, stop, end)
            return
        cut = _behind_last(held, end, max(seen - length + 1, 0))
        if universal and not cut:  # not the last byte: what follows it may belong to it
            cut = held.rfind(b"\r", seen - (seen > 0), -1) + 1
        if cut:
            yield at, held[:cut]
            at += cut
            del held[:cut]
        seen = len(held)
        if not (more := read(CHUNK if stop is None else min(CHUNK, stop - at - len(held)))):
            if held:
                yield at, held
            return
        held += more


def _last_lines(
    read: Callable[[int], bytes], held: bytearray, at: int, stop: int, end: bytes
) -> Iterator[tuple[int, bytearray]]:
    """Give what is left of a part, up to the end of its last line."""
    behind = max(stop - len(end) - at, 0)
    while (found := held.find(end, behind)) < 0:
        behind = max(len(held) - len(end) + 1, behind)
        if not (more := read(TAIL)):
            yield at, held
            return
        held += more
    yield at, held[: found + len(end)]


@dataclass(frozen=True)
class Whole(Format):
    """A file as one element: its path, and what is in it."""

    encoding: str | None = None  # None for bytes
    errors: str = "strict"

    def elements(self, descriptor: Descriptor) -> Iterator[tuple[str, bytes | str]]:
        """Give path and content."""
        try:
            with self.unpacked(descriptor) as file:
                content = file.read()
            if self.encoding is None:
                yield descriptor.path, content
            else:
                text = io.TextIOWrapper(io.BytesIO(content), self.encoding, self.errors)
                yield descriptor.path, text.read()
        except Exception as error:
            tell(error, short_repr(descriptor.path))
            raise


stands_between(Lines.runs.__code__.co_filename)
