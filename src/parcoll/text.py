"""Words for messages: an element, a function or a value in a line of bounded length."""

from __future__ import annotations

import functools
import reprlib
from typing import Any

LIMIT = 200  # characters of an element that a message quotes

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = LIMIT
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = 10
_short.maxlevel = 4


def short_repr(value: object) -> str:
    """Return `repr(value)` cut at `LIMIT` characters, whatever the object's own repr does."""
    try:
        text = _short.repr(value)
    except Exception as error:
        return f"<{type(value).__name__} object, whose repr raised {type(error).__name__}>"
    return text if len(text) <= LIMIT else text[: LIMIT - 3] + "..."


def describe(value: object) -> str:
    """Return the value and its type: ``1 (an int)``."""
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{short_repr(value)} ({article} {name})"


def function_name(func: Any) -> str:
    """Return the name a user knows a callable by."""
    if func is None:
        return "None"
    if isinstance(func, functools.partial):
        return function_name(func.func)
    name = getattr(func, "__name__", None)
    if not isinstance(name, str):
        return type(func).__name__
    return "lambda" if name == "<lambda>" else name


def key_words(text: str) -> str:
    """Return `text` as lower-case words of letters joined by dashes, as dask's dashboard groups keys.

    dask cuts a key's label at the first word that is not made of letters alone.
    """
    letters = "".join(c if c.isalpha() and c.isascii() else " " for c in text)
    return "-".join(letters.split()) or "parcoll"
