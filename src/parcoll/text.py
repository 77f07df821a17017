"""Text: values and functions in a line of bounded length, for messages, tables and the keys of tasks."""

from __future__ import annotations

import ast
import contextvars
import functools
import itertools
import linecache
import re
import reprlib
import threading
import time
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

LIMIT = 200  # characters of an element that a message quotes

MOST_SORTED = 1000  # members of a dict or set that are sorted before the first ones are shown
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

DEADLINE = 1.0  # seconds that a user's own `__repr__` or `__str__` may take
_SCALARS = (int, float, complex, bool, str, bytes, type(None))
_OF_PYTHON: tuple[Any, ...] = (
    object.__repr__,
    type.__repr__,
    FunctionType.__repr__,
    BuiltinFunctionType.__repr__,
)
_CONTAINERS: tuple[Any, ...] = (list, tuple, dict, set, frozenset, bytearray, bytes, str)
_asked: contextvars.ContextVar[list[type]] = contextvars.ContextVar("asked")  # for its repr
SLOW_SECONDS = 60.0  # that a class is not asked again whose repr or str has taken too long
_slow: weakref.WeakKeyDictionary[type, float] = weakref.WeakKeyDictionary()  # and until when


class TooLongError(Exception):
    """What a user's class says of itself takes longer than `DEADLINE`."""


class EndsProcessError(Exception):
    """What a user's class says of itself ends in an exception that is no `Exception`: a `SystemExit`."""


class _Stopped(BaseException):
    """Ends the thread in which it takes so long, as far as that is Python's own code."""


class _Short(reprlib.Repr):
    """`reprlib`, for values of any size: it reads no more of them than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LIMIT
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 10
        self.maxlevel = 4

    def repr1(self, x: Any, level: int) -> str:
        """Return the repr of a value, by what is shown of its class; `repr_instance` for a user's own."""
        kind = type(x)
        base: Any = next((base for base in _CONTAINERS if issubclass(kind, base)), None)
        own: Any = kind.__repr__
        if base is dict and kind.__module__ == "collections" and len(x) > MOST_SORTED:
            return f"{kind.__name__}({self.repr_dict(dict(itertools.islice(x.items(), 11)), level)})"
        if base is None or own is not base.__repr__:
            known = kind.__module__ in ("builtins", "collections", "array")
            return super().repr1(x, level) if known else self.repr_instance(x, level)
        if base in (dict, set, frozenset) and len(x) > MOST_SORTED:
            first = itertools.islice(x.items() if base is dict else x, self.maxdict + 1)
            x = base(first)
        shown: str = getattr(self, f"repr_{base.__name__}")(x, level)
        return shown

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Return a row of bytes without its middle, as `repr_str` does."""
        if len(x) <= self.maxstring:
            text = repr(x)
            if len(text) <= self.maxstring:
                return text
        head = (self.maxstring - 3) // 2
        tail = self.maxstring - 3 - head
        text = repr(x[:head] + x[len(x) - tail :])
        return f"{text[:head]}...{text[len(text) - tail :]}"

    def repr_bytearray(self, x: bytearray, level: int) -> str:
        """Return what it holds, as `repr_bytes` does."""
        return f"bytearray({self.repr_bytes(bytes(x[: self.maxstring + 1]), level)})"

    def repr_instance(self, x: Any, level: int) -> str:
        """Return a value's own repr, cut, or why there is none."""
        kind = type(x)
        if _is_slow(kind):
            return _without_text(kind, f"takes longer than {DEADLINE:g} s")
        asked = _asked.get([])
        asked[:] = [kind]
        try:
            text = repr(x)
        except Exception as error:
            return _without_text(kind, f"raised {type(error).__name__}")
        asked.clear()
        return text if len(text) <= self.maxother else f"{text[: self.maxother - 3]}..."


_short = _Short()


def _without_text(kind: type, why: str) -> str:
    return f"<{escaped(kind.__name__)} object, whose repr {escaped(why)}>"


def short_repr(value: object) -> str:
    """Return `repr(value)`, cut at `LIMIT` characters, in a second or so; raises nothing of its own."""
    try:
        text = _short.repr(value) if _is_plain(value) else in_time(_short.repr, value)
    except TooLongError as error:
        return _without_text(error.args[0], f"takes longer than {DEADLINE:g} s")
    except EndsProcessError as error:
        return _without_text(type(value), f"raised {error}")
    except Exception as error:
        return _without_text(type(value), f"raised {type(error).__name__}")
    if not text.isprintable():  # the author of a class may have any text given
        text = escaped(" ".join(text.split()))
    return text if len(text) <= LIMIT else text[: LIMIT - 3] + "..."


def in_time(describe: Callable[[Any], str], value: Any) -> str:
    """Return what `describe` says of a value; TooLongError if that takes longer than `DEADLINE`.

    It runs in a thread of its own, since nothing else can be left behind: in Python's own code it is ended
    there, in a call that waits it goes on. A class that has taken too long is not asked again soon. Where no
    thread can be started it runs here.
    """
    if _is_slow(type(value)):
        raise TooLongError(type(value))
    asked: list[type] = []
    said: list[tuple[str, BaseException | None]] = []
    context = contextvars.copy_context()
    context.run(_asked.set, asked)

    def say() -> None:
        try:
            said.append((context.run(describe, value), None))
        except BaseException as error:
            said.append(("", error))

    thread = threading.Thread(target=say, name="parcoll-text", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return describe(value)
    try:
        thread.join(DEADLINE)
    finally:  # also where a signal's handler raises meanwhile
        if not said:
            _end(thread)
    text, error = said[0] if said else ("", _Stopped())
    if isinstance(error, _Stopped):
        kind = next(iter(asked), type(value))
        if kind not in _CONTAINERS:
            _slow[kind] = time.monotonic() + SLOW_SECONDS
        raise TooLongError(kind)
    if error is not None:
        raise error if isinstance(error, Exception) else EndsProcessError(type(error).__name__)
    return str(text)


def _is_slow(kind: type) -> bool:
    return bool(_slow) and _slow.get(kind, 0.0) > time.monotonic()


def _end(thread: threading.Thread) -> None:
    import ctypes  # 10 ms, for what takes a second

    ended = ctypes.py_object(_Stopped)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ended)


def _is_plain(value: Any, level: int = 3) -> bool:
    """Tell whether the repr of all that is shown of a value is Python's own, and fast."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return True
    if kind in (list, tuple) and level:
        return all(_is_plain(item, level - 1) for item in itertools.islice(value, 11))
    if kind is dict and level and len(value) <= 10:
        return all(_is_plain(item, level - 1) for pair in value.items() for item in pair)
    if kind.__repr__ is BaseException.__repr__ and level:
        return all(_is_plain(item, level - 1) for item in value.args)
    return kind.__repr__ in _OF_PYTHON


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
    body = line.encode()[start:end].decode(errors="replace")
    return body if code.co_filename != "<string>" or _may_be(body, code) else ""


def _may_be(body: str, code: CodeType) -> bool:
    """Tell whether an expression has the names of the code.

    Python 3.13 knows the text of `python -c` as that of the file "<string>", which is also the name of what
    `exec` compiles.
    """
    try:
        nodes = list(ast.walk(ast.parse(body, mode="eval")))
    except (SyntaxError, ValueError):
        return False
    spoken = {node.id for node in nodes if isinstance(node, ast.Name)}
    spoken |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    known = {*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars}
    return spoken <= known and spoken >= {*code.co_names}
