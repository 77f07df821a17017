"""Text: values and functions in a line of bounded length, for messages, tables and the keys of tasks."""

from __future__ import annotations

import functools
import linecache
import re
import reprlib
from types import CodeType
from typing import Any

LIMIT = 200  # characters of an element that a message quotes

MAX_WORDS = 8  # of a lambda in a key
MAX_BODY = 40  # characters of a lambda in a table
_TOKEN = re.compile(r"[A-Za-z]+|\*\*|//|[<>=!]=|[-+*/%<>&|^@]|\d+")
_SPOKEN = dict(
    pair.split()
    for pair in (
        *("+ plus", "- minus", "* times", "/ by", "// by", "% mod", "** power", "@ at"),
        *("< below", "> above", "<= upto", ">= from", "== is", "!= isnot"),
        *("& and", "| or", "^ xor"),
    )
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Control characters, what breaks lines or turns their direction, and halves of characters, which no encoding
# holds: Python has them in the place of bytes that a file's name could not be decoded from.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = LIMIT
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = 10
_short.maxlevel = 4


def short_repr(value: object) -> str:
    """Return `repr(value)`, cut at `LIMIT` characters; raises nothing if the value's repr does."""
    try:
        text = _short.repr(value)
    except Exception as error:
        return f"<{type(value).__name__} object, whose repr raised {type(error).__name__}>"
    if not text.isprintable():  # the author of a class may have any text given
        text = escaped(" ".join(text.split()))
    return text if len(text) <= LIMIT else text[: LIMIT - 3] + "..."


def escaped(text: str) -> str:
    """Return a text that users chose in one line that terminals, logs and web pages show as it is."""
    return text if text.isprintable() else _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], text)


def describe(value: object) -> str:
    """Return the value and its type: ``1 (an int)``."""
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{short_repr(value)} ({article} {name})"


def function_name(func: Any) -> str:
    """Return the name by which a user knows a callable."""
    if func is None:
        return "None"
    if isinstance(func, functools.partial):
        return function_name(func.func)
    name = getattr(func, "__name__", None)
    if not isinstance(name, str):
        return escaped(type(func).__name__)
    return "lambda" if name == "<lambda>" else escaped(name)


def key_words(text: str) -> str:
    """Return the words of `text` joined by dashes, with letters only, so that dask's dashboard groups keys.

    dask cuts a key's label at the first word that is not made of letters alone.
    """
    letters = "".join(c if c.isalpha() and c.isascii() else " " for c in text)
    return "-".join(letters.split()) or "parcoll"


def function_words(func: Any) -> str:
    """Return a function's name; for a lambda what it does, in words: ``lambda x times two``."""
    code = _code_of_lambda(func)
    if code is None:
        return function_name(func)
    spoken = [_word(token) for token in _TOKEN.findall(_body(code) or " ".join(code.co_names))]
    words = [word for word in spoken if word][:MAX_WORDS]
    around = code.co_qualname.split(".")[:-1]
    if not words:  # then the functions within which it was written
        words = [name for name in around if name.isidentifier()]
    return " ".join(["lambda", *words])


def function_title(func: Any) -> str:
    """Return a function's name; for a lambda its source text: ``lambda x: x * 2``."""
    code = _code_of_lambda(func)
    body = _body(code) if code is not None else ""
    if code is None or not body:
        return function_name(func)
    named = ", ".join(code.co_varnames[: code.co_argcount])
    return escaped(f"lambda {named}: {body if len(body) <= MAX_BODY else body[: MAX_BODY - 3] + '...'}")


def _code_of_lambda(func: Any) -> CodeType | None:
    while isinstance(func, functools.partial):
        func = func.func
    code = getattr(func, "__code__", None)
    return code if isinstance(code, CodeType) and code.co_name == "<lambda>" else None


def _word(token: str) -> str:
    if token.isdigit():
        return _NUMBERS[int(token)] if len(token) < 3 and int(token) < len(_NUMBERS) else ""
    return _SPOKEN.get(token, token)


def _body(code: CodeType) -> str:
    """Return the source text of a lambda's expression; "" unless it is one line that can be found."""
    places = [place for place in code.co_positions() if place[0] == place[1] == code.co_firstlineno]
    columns = [(start, end) for _, _, start, end in places if start is not None and end]
    line = linecache.getline(code.co_filename, code.co_firstlineno)
    if not columns or not line:
        return ""
    start, end = min(start for start, _ in columns), max(end for _, end in columns)
    return line.encode()[start:end].decode(errors="replace")
