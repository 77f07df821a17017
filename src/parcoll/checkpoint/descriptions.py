"""Descriptions: the two JSON files of a checkpoint's folder, and whether what is found there can be one.

`parcoll-chain.json` says which chain made the results, and in which format they are. It is read first: of a
folder in another format nothing else is known. `parcoll-end.json` says how many elements the source had.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from parcoll.checkpoint import fingerprint

FORMAT = 2  # of all files in the folder; to be raised when pickles in pieces name other modules, too
CHAIN = "parcoll-chain.json"
END = "parcoll-end.json"


class ChainFile(NamedTuple):
    """The content of `parcoll-chain.json`."""

    format: int
    python: str = ""
    length: int | None = None  # of the source, if it was known before its end
    steps: Sequence[dict[str, Any]] = ()  # their fingerprint

    def encoded(self) -> bytes:
        """Return the bytes of the file."""
        return json.dumps(self._asdict(), indent=1).encode()


def chain_file(length: int | None, steps: Sequence[dict[str, Any]]) -> ChainFile:
    """Return the description of what this process makes."""
    return ChainFile(FORMAT, running_python(), length, steps)


def chain_file_in(content: bytes) -> ChainFile:
    """Return what a file says, of another format its number only; ValueError for what no parcoll writes."""
    found = _object_in(content)
    number, python, length, steps = (found.get(name) for name in ChainFile._fields)
    if type(number) is not int or number < 1:
        raise ValueError(number)
    if number != FORMAT:
        return ChainFile(number)
    if not isinstance(python, str) or not fingerprint.is_chain(steps):
        raise ValueError(found)
    if "length" not in found or not (length is None or _is_count(length)):
        raise ValueError(length)
    return ChainFile(number, python, length, steps)


def end_file(elements: int) -> bytes:
    """Return the bytes of `parcoll-end.json`."""
    return json.dumps({"elements": elements}, indent=1).encode()


def elements_in(content: bytes) -> int:
    """Return how many elements the source had; ValueError for what no parcoll writes."""
    elements = _object_in(content).get("elements")
    if not _is_count(elements):
        raise ValueError(elements)
    return elements


def running_python() -> str:
    """Return the name and version of Python as far as bytecode depends on it."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def other_format(number: int) -> str | None:
    """Return words for a parcoll that writes another format; None if this one writes it."""
    if number == FORMAT:
        return None
    return (
        f"{'an older' if number < FORMAT else 'a newer'} parcoll (format {number}, this one writes {FORMAT})"
    )


def _object_in(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("too many brackets") from None
    if not isinstance(found, dict):
        raise ValueError(found)
    return found


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0
