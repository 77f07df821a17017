"""Descriptions: the two JSON files of a checkpoint's folder, and whether what is found there can be one.

`parcoll-chain.json` says which chain made the results, and in which format they are. It is read first: of a
folder in another format nothing else is known. `parcoll-end.json` says how many elements the source had.
Each ends with the SHA-256 of what stands before it, so that one changed bit anywhere is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from parcoll.checkpoint import fingerprint

FORMAT = 4  # of all files in the folder; to be raised when pickles in pieces name other modules, too
READ = (3, 4)  # formats of folders that are used; 3 does not say which results failed elements have given
CHAIN = "parcoll-chain.json"
END = "parcoll-end.json"
_SEAL = b',\n "sha256": "%s"\n}'
_NUMBER = re.compile(rb'"format": \d+')
_HIGHEST = 10**6  # formats that there may ever be
_LATEST = 2e11  # seconds since 1970: year 8307; a clock may be set to anything


class ChainFile(NamedTuple):
    """The content of `parcoll-chain.json`."""

    format: int
    python: str = ""
    length: int | None = None  # of the source, if it was known before its end
    steps: Sequence[dict[str, Any]] = ()  # their fingerprint
    since: float | None = (
        None  # when the folder's first results were saved, by the wall clock; since format 4
    )

    def encoded(self) -> bytes:
        """Return the bytes of the file."""
        return _sealed(self._asdict())


def chain_file(length: int | None, steps: Sequence[dict[str, Any]], since: float | None = None) -> ChainFile:
    """Return the description of what this process makes."""
    return ChainFile(FORMAT, running_python(), length, steps, since)


def chain_file_in(content: bytes) -> ChainFile:
    """Return what a file says, of another format its number only; ValueError for what no parcoll writes."""
    found = _object_in(content)
    number = found.get("format")
    if type(number) is not int or not 0 < number < _HIGHEST:
        raise ValueError(number)
    if number not in READ and not any(
        _is_whole(_NUMBER.sub(b'"format": %d' % read, content, count=1)) for read in READ
    ):
        return ChainFile(number)
    if number not in READ or not _is_whole(content):
        raise ValueError(found)
    python, length, steps, since = (found.get(name) for name in ("python", "length", "steps", "since"))
    if not isinstance(python, str) or not fingerprint.is_chain(steps):
        raise ValueError(found)
    if "length" not in found or not (length is None or _is_count(length)):
        raise ValueError(length)
    if not (since is None or (isinstance(since, float) and 0 < since < _LATEST)):
        raise ValueError(since)
    return ChainFile(number, python, length, steps, since)


def end_file(elements: int) -> bytes:
    """Return the bytes of `parcoll-end.json`."""
    return _sealed({"elements": elements})


def elements_in(content: bytes) -> int:
    """Return how many elements the source had; ValueError for what no parcoll writes."""
    elements = _object_in(content).get("elements")
    if not _is_whole(content) or not _is_count(elements):
        raise ValueError(elements)
    return elements


def running_python() -> str:
    """Return the name and version of Python as far as bytecode depends on it."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def other_format(number: int) -> str | None:
    """Return words for a parcoll that writes another format; None if this one reads it."""
    if number in READ:
        return None
    return (
        f"{'an older' if number < FORMAT else 'a newer'} parcoll (format {number}, this one writes {FORMAT})"
    )


def _sealed(found: dict[str, Any]) -> bytes:
    """Return the bytes of a file that says this, and ends with their checksum."""
    body = json.dumps(found, indent=1).encode()[:-2]
    return body + _seal_of(body)


def _is_whole(content: bytes) -> bool:
    """Tell whether the file's last line is the checksum of the lines before it."""
    body = content[: -len(_seal_of(b""))]
    return content == body + _seal_of(body)


def _seal_of(body: bytes) -> bytes:
    return _SEAL % hashlib.sha256(body).hexdigest().encode()


def _object_in(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("too many brackets") from None
    if not isinstance(found, dict):
        raise ValueError(found)
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0
