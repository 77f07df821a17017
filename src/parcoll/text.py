"""Text: values and functions in a line of bounded length, for messages, tables and the keys of tasks."""

from __future__ import annotations

import _thread
import ast
import contextvars
import functools
import itertools
import linecache
import re
import reprlib
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, WrapperDescriptorType
from typing import Any

from parcoll.clock import time

LIMIT = 200  # characters of an element that a message quotes
MAX_TEXT = 10_000  # characters of what an exception says, where it has more than can be told
MARK = 40  # characters that say how many there were
MAX_BITS = 2000  # of a number that Python surely writes in decimals: it may be told to refuse 640 digits

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
# Whose repr is being asked for; unset where no deadline is running.
_asked: contextvars.ContextVar[list[type]] = contextvars.ContextVar("asked")
SLOW_SECONDS = 60.0  # that a class is not asked again whose repr or str has taken too long
_slow: weakref.WeakKeyDictionary[type, float] = weakref.WeakKeyDictionary()  # and until when


class _Unset:
    """Stands for an argument that was not given; `help()` shows its `repr` as the default."""

    def __repr__(self) -> str:
        return "<none>"

    def __reduce__(self) -> str:
        return "UNSET"  # one object in each process


UNSET: Any = _Unset()


class TooLongError(Exception):
    """What a user's class says of itself takes longer than `DEADLINE`."""


class EndsProcessError(Exception):
    """What a user's class says of itself ends in an exception that is no `Exception`: a `SystemExit`."""


class _Stopped(SystemExit):
    """Ends the thread in which it takes so long, as far as that is Python's own code, without a word."""


class _Short(reprlib.Repr):
    """`reprlib`, for values of any size: it reads no more of them than it shows."""

    def __init__(self, caught: type[Exception] | tuple[()]) -> None:
        super().__init__()
        self._caught = caught  # what a value's own repr may raise
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
        except self._caught as error:
            return _without_text(kind, f"raised {type(error).__name__}")
        asked.clear()
        return text if len(text) <= self.maxother else f"{text[: self.maxother - 3]}..."


_short = _Short(Exception)
_short_of_plain = _Short(())  # nothing is raised there but by a signal's handler


def _without_text(kind: type, why: str) -> str:
    return f"<{escaped(kind.__name__)} object, whose repr {escaped(why)}>"


def short_repr(value: object) -> str:
    """Return `repr(value)`, cut at `LIMIT` characters, in a second or so; raises nothing of its own."""
    if _is_plain(value):
        text = _short_of_plain.repr(value)
    else:
        text, error = _said(_short.repr, value)
        if isinstance(error, TooLongError):
            return _without_text(error.args[0], f"takes longer than {DEADLINE:g} s")
        if error is not None:
            named = str(error) if isinstance(error, EndsProcessError) else type(error).__name__
            return _without_text(type(value), f"raised {named}")
    if not text.isprintable():  # the author of a class may have any text given
        text = escaped(" ".join(text.split()))
    return text if len(text) <= LIMIT else text[: LIMIT - 3] + "..."


def message_of(error: BaseException) -> str:
    """Return what an exception says, or in brackets why it says nothing; in a second or so."""
    if is_plain_error(error):
        return shortened(str(error))
    text, failure = _said(str, error)
    if isinstance(failure, TooLongError):
        return f"<its str() takes longer than {DEADLINE:g} s>"
    return "<its str() failed>" if failure is not None else shortened(text)


def line_of(error: BaseException) -> str:
    """Return ``ValueError: the message``; the message is as `message_of` has it."""
    return f"{type(error).__name__}: {message_of(error)}"


def shortened(text: str) -> str:
    """Return a text of about `MAX_TEXT` characters at most, and how many it had."""
    if len(text) <= MAX_TEXT + MARK:  # what was cut before is not cut again
        return text
    return f"{text[:MAX_TEXT]}... ({len(text):,} characters)"


def is_plain_error(error: BaseException) -> bool:
    """Tell whether an exception's text is Python's own, and those of its values too: it is said at once."""
    return isinstance(type(error).__str__, WrapperDescriptorType) and all(map(_is_scalar, error.args))


def in_time(describe: Callable[[Any], str], value: Any) -> str:
    """Return what `describe` says of a value; TooLongError if that takes longer than `DEADLINE`.

    It runs in a thread of its own, since nothing else can be left behind: in Python's own code it is ended
    there, in a call that waits it goes on. A class that has taken too long is not asked again soon. Where no
    thread can be started it runs here.
    """
    text, error = _said(describe, value)
    if error is not None:
        raise error
    return text


def _said(describe: Callable[[Any], str], value: Any) -> tuple[str, Exception | None]:
    """Return what `describe` says of a value, or else what was raised instead.

    What this raises itself comes from a signal's handler of the script's, and is nobody's to catch.
    """
    if _is_slow(type(value)):
        return "", TooLongError(type(value))
    if _asked.get(None) is not None:  # within another description, whose deadline holds
        return _said_here(describe, value)
    asked: list[type] = []
    said: list[tuple[str, Exception | None]] = []
    started: list[int] = []
    left: list[bool] = []
    context = contextvars.copy_context()
    context.run(_asked.set, asked)
    done = _thread.allocate_lock()
    done.acquire()

    def say() -> None:
        started.append(_thread.get_ident())
        if left:
            return
        try:
            said.append(context.run(_said_here, describe, value))
        except _Stopped:
            pass
        except BaseException as error:
            said.append(("", EndsProcessError(type(error).__name__)))
        finally:
            done.release()

    # Not a `threading.Thread`: what a signal's handler raises while one is started or joined comes out of
    # that module as a RuntimeError now and then ("release unlocked lock"), or not at all.
    try:
        _thread.start_new_thread(say, ())
        done.acquire(True, DEADLINE)
    except RuntimeError as error:
        if type(error).__module__ != "builtins" or "new thread" not in str(error):
            raise
        return _said_here(describe, value)
    finally:  # also where a signal's handler raises meanwhile
        left.append(True)
        if started and not said:
            _end(started[0])
    if said:
        return said[0]
    kind = next(iter(asked), type(value))
    if kind not in _CONTAINERS:
        _slow[kind] = time.monotonic() + SLOW_SECONDS
    return "", TooLongError(kind)


def _said_here(describe: Callable[[Any], str], value: Any) -> tuple[str, Exception | None]:
    try:
        return str(describe(value)), None
    except Exception as error:
        return "", error


def _is_slow(kind: type) -> bool:
    return bool(_slow) and _slow.get(kind, 0.0) > time.monotonic()


def _end(thread: int) -> None:
    import ctypes  # 10 ms, for what takes a second

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))


def _is_plain(value: Any, level: int = 3) -> bool:
    """Tell whether the repr of all that is shown of a value is Python's own, and fast."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return _is_scalar(value)
    if kind in (list, tuple) and level:
        return all(_is_plain(item, level - 1) for item in itertools.islice(value, 11))
    if kind is dict and level and len(value) <= 10:
        return all(_is_plain(item, level - 1) for pair in value.items() for item in pair)
    if type(kind) is not type:  # whose attributes may be a user's code
        return False
    if issubclass(kind, BaseException) and kind.__repr__ is BaseException.__repr__ and level:
        return all(_is_plain(item, level - 1) for item in value.args)
    return kind.__repr__ in _OF_PYTHON


def _is_scalar(value: Any) -> bool:
    return type(value) in _SCALARS and (type(value) is not int or value.bit_length() <= MAX_BITS)


def escaped(text: str) -> str:
    """Return a text that users chose in one line that terminals, logs and web pages show as it is."""
    return text if text.isprintable() else _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], text)


def describe(value: object) -> str:
    """Return the value and its type: ``1 (an int)``."""
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{short_repr(value)} ({article} {name})"


def counted(number: int, what: str) -> str:
    """Return a number of things, as in ``1 row`` and ``1,000 rows``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


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
