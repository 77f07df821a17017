"""Slots: the number by which equal keys come together, whichever processes have them.

Keys that are equal in a dict get the same number. Where all processes have one hash seed, it is made of
Python's own `hash`, which agrees with `==` for every class. Elsewhere (`dask worker --no-nanny`) it is made
of what is written in the key, for the classes that are known here; others are refused.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import operator
import sys
import types
import uuid
import weakref
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import PurePath
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

from parcoll.wire.reducers import sentinels

# A prime: multiples of 64, say, spread over it. Of more slots, those of one block of keys would be so small
# that the way they are packed would cost more than what is in them.
SLOTS = 127
LEVELS = (SLOTS, 113, 109, 107)  # primes too: a slot that is too large is cut again by other digits

SEED = hash("parcoll")
NONE = hash(None)  # before Python 3.12 an address, which differs from process to process

NAN = math.nan  # stands for all of them: a dict tells them apart by identity, which does not travel
OF_NAN = 2
_nans: dict[type, Any] = {}  # of other types
_compared: weakref.WeakKeyDictionary[type, tuple[str, ...] | None] = weakref.WeakKeyDictionary()

# Their `hash` depends on the seed and the value, and on nothing else; of those that may be NaN, except there.
PLAIN = frozenset(
    (
        *(str, bytes, int, bool, fractions.Fraction, uuid.UUID),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
    )
)
MAY_BE_NAN = frozenset([float, complex, decimal.Decimal])
NEVER_NAN = PLAIN | {type(None), type}
PLAINEST = frozenset((str, bytes, int, bool))  # and any pickler packs them alike

NUMBERS = frozenset(kind.__hash__ for kind in (int, float, complex, decimal.Decimal, fractions.Fraction))
CALLED = (  # their hashes are addresses
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType),
)
MASK = 2**61 - 1


class SeedError(TypeError):
    """Keys of a class whose hash nobody can know in a process with another hash seed."""


def identity_error(kind: type) -> TypeError:
    """Return the error for keys that are equal to themselves alone."""
    return TypeError(
        f"keys of {kind.__qualname__} are told apart by identity, which does not survive the way between "
        "processes: give the class __eq__ and __hash__ (as a frozen dataclass has), or use a key that says "
        "what is equal"
    )


def seed_error(name: str) -> SeedError:
    """Return the error for keys that are hashed otherwise by each worker."""
    return SeedError(
        f"keys of {name} have another hash on each of these workers: start all of them with the same "
        "PYTHONHASHSEED (a worker's nanny does), or use a key of numbers, strings, dates and tuples of these"
    )


def _within(keys: Sequence[Any]) -> set[type]:
    """Return the types of keys; if all are tuples, the types of what is in them."""
    kinds = set(map(type, keys))
    return set(map(type, chain.from_iterable(keys))) if kinds == {tuple} else kinds


def slots_of(keys: Sequence[Any], level: int = 0) -> tuple[list[int], str]:
    """Return the slot of each key, for processes of this hash seed; and a class whose hash may need more.

    Raises TypeError for keys that are equal to themselves alone.
    """
    other = ""
    hashes: Iterable[int]
    if _within(keys) <= PLAIN:
        hashes = map(hash, keys)
    elif set(map(type, keys)) <= PLAIN | MAY_BE_NAN:
        hashes = [hash(key) if key == key else OF_NAN for key in keys]
    else:
        hashes = [hash(_stand_in(key)) for key in keys]
        other = next((kind.__qualname__ for kind in _within(keys) if not _is_known(kind)), "")
    return cut(hashes, level), other


def written_slots(keys: Sequence[Any], level: int = 0) -> list[int]:
    """Return the slot of each key, for any process. Raises TypeError for classes that are not known."""
    return cut([written(key) for key in keys], level)


def cut(hashes: Iterable[int], level: int) -> list[int]:
    before, prime = math.prod(LEVELS[:level]), LEVELS[level]
    return [value // before % prime for value in hashes] if level else [value % prime for value in hashes]


def is_nan(key: Any) -> bool:
    """Tell whether this is a key that is not equal to itself."""
    try:
        return type(key).__hash__ is not None and bool(key != key)
    except Exception:  # an array in a tuple, say
        return False


def one_nan(keys: Sequence[Any]) -> Sequence[Any]:
    """Return the keys with one and the same NaN for all, also within tuples, frozensets and dataclasses."""
    return keys if _within(keys) <= NEVER_NAN else [_one_nan(key) for key in keys]


def _one_nan(key: Any) -> Any:
    if (kind := type(key)) in NEVER_NAN:
        return key
    if kind not in MAY_BE_NAN and (members := members_of(key)) is not None:
        made = list(map(_one_nan, members))
        return key if all(map(operator.is_, made, members)) else rebuilt(key, made)
    if not is_nan(key):
        return key
    return NAN if isinstance(key, float) or _is_number_of_numpy(kind) else _nans.setdefault(kind, key)


def members_of(key: Any) -> Sequence[Any] | None:
    """Return what a tuple, a frozenset or a dataclass is compared by; None for other keys."""
    kind: Any = type(key)
    if kind.__hash__ in (tuple.__hash__, frozenset.__hash__):
        return tuple(key)
    names = _names(kind)
    return None if names is None else [getattr(key, name, None) for name in names]


def rebuilt(key: Any, members: Sequence[Any]) -> Any:
    """Return a copy of a key that has these in the place of its members."""
    kind: Any = type(key)
    if (names := _names(kind)) is not None:
        copied = copy.copy(key)
        for name, member in zip(names, members, strict=True):
            object.__setattr__(copied, name, member)
        return copied
    if hasattr(kind, "_make"):
        return kind._make(members)
    base: Any = tuple if kind.__hash__ is tuple.__hash__ else frozenset
    copied = base.__new__(kind, members)
    if hasattr(key, "__dict__"):
        vars(copied).update(vars(key))
    return copied


def _names(kind: Any) -> tuple[str, ...] | None:
    """Return by which fields objects of a dataclass are compared; None for another class."""
    try:
        return _compared[kind]
    except KeyError:
        names = None
        if dataclasses.is_dataclass(kind) and _is_generated(kind):
            names = tuple(field.name for field in dataclasses.fields(kind) if field.compare)
        _compared[kind] = names
        return names


def _stand_in(key: Any) -> Any:
    """Return what has the same hash in all processes of one seed, if the key is equal."""
    kind = type(key)
    hashes: Any = kind.__hash__
    if kind in PLAIN:
        return key
    if key is None:
        return 1
    if hashes is object.__hash__ or isinstance(key, CALLED):
        return name_of(key)
    if hashes in (tuple.__hash__, frozenset.__hash__):
        return (tuple if hashes is tuple.__hash__ else frozenset)(map(_stand_in, key))
    if hashes is enum.Enum.__hash__:
        return str(key._name_)
    if _names(kind) is not None:
        return kind.__qualname__, tuple(map(_stand_in_within, members_of(key) or ()))
    return OF_NAN if is_nan(key) else key


def _is_generated(kind: Any) -> bool:
    """Tell whether `dataclass` has made the methods that say what is equal."""
    made = (getattr(getattr(kind, name), "__code__", None) for name in ("__eq__", "__hash__"))
    return all(code is not None and code.co_qualname.startswith("__create_fn__.") for code in made)


def _stand_in_within(value: Any) -> Any:
    """Return it for what a dataclass holds; None for what has no hash, in a field that its own leaves out."""
    try:
        hash(value)
    except TypeError:
        return None
    return _stand_in(value)


def name_of(key: Any) -> tuple[str, str]:
    """Return the name of a class, function or object that each process has one of. TypeError for others."""
    if isinstance(key, type) or (isinstance(key, CALLED) and _is_global(key)):
        return key.__module__, key.__qualname__
    if isinstance(key, types.ModuleType):
        return "", key.__name__
    if type(key) in (object, ZoneInfo):
        return "", str(key if type(key) is ZoneInfo else sentinels.key_of(key))
    with contextlib.suppress(Exception):
        if isinstance(reduced := key.__reduce_ex__(5), str):  # Ellipsis, say
            return type(key).__module__, reduced
    raise identity_error(type(key))


def _is_global(func: Any) -> bool:
    found: Any = sys.modules.get(getattr(func, "__module__", None) or "")
    for name in func.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is func


def written(key: Any) -> int:
    """Return a number that is the same for equal keys in all processes. SeedError for a class not known."""
    kind = type(key)
    hashes: Any = kind.__hash__
    if key is None:
        return 1
    if hashes is object.__hash__ or isinstance(key, CALLED):
        return _of_text("/".join(name_of(key)))
    if hashes is str.__hash__ or _is_numpy(kind, "str_"):
        return _of_text(str.__str__(key))
    if hashes is bytes.__hash__ or _is_numpy(kind, "bytes_") or kind is memoryview:
        return crc32(bytes(key)) * 0x9E3779B1 & MASK
    if hashes in NUMBERS or _is_number_of_numpy(kind):
        return OF_NAN if is_nan(key) else hash(key)
    if hashes is tuple.__hash__:
        return _joined([written(member) for member in key])
    if hashes is frozenset.__hash__:
        return _joined(sorted(written(member) for member in key))
    if hashes is enum.Enum.__hash__:
        return _of_text(str(key._name_))
    if hashes is enum.Flag.__hash__:
        return hash(key._value_)
    if hashes is range.__hash__:
        start = key[0] if key else 0
        return _joined([len(key), start, key.step if len(key) > 1 else 1])
    if hashes is datetime.datetime.__hash__:
        return _of_moment(key)
    if hashes in (datetime.date.__hash__, datetime.timedelta.__hash__):
        return _of_text(str(key))
    if hashes is datetime.time.__hash__ and key.tzinfo is None:
        return _of_text(key.replace(fold=0).isoformat())
    if hashes is uuid.UUID.__hash__:
        return hash(key.int)
    if _names(kind) is not None:
        return _joined([_of_text(kind.__qualname__), *map(written, members_of(key) or ())])
    if kind.__module__ == "ipaddress" and not kind.__name__.endswith("Interface"):
        return _of_text(f"{kind.__name__} {key}")
    if hashes is PurePath.__hash__ and not kind.__name__.endswith("WindowsPath"):
        return _of_text(str(key))
    raise seed_error(kind.__qualname__)


def _of_text(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass")) * 0x9E3779B1 & MASK


def _joined(numbers: Sequence[int]) -> int:
    value = 0x345678
    for number in numbers:
        value = (value * 1000003 ^ number) & MASK
    return value


def _of_moment(key: datetime.datetime) -> int:
    """Return the number of a moment: the same one in two time zones is one key."""
    naive, offset = key.replace(tzinfo=None, fold=0), key.replace(fold=0).utcoffset()
    if offset is None:
        return _of_text(naive.isoformat())
    since = naive - datetime.datetime(1, 1, 1) - offset
    return _joined([3, since.days, since.seconds, since.microseconds])


def _is_numpy(kind: type, name: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and kind is getattr(numpy, name)


def _is_number_of_numpy(kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not issubclass(kind, (numpy.number, numpy.bool_)):
        return False
    return not issubclass(kind, numpy.timedelta64) and kind.__module__ == "numpy"


def _is_known(kind: type) -> bool:
    """Tell whether the hash of a class depends on its value and on the seed alone."""
    hashes: Any = kind.__hash__
    if (
        kind in PLAIN
        or kind in MAY_BE_NAN
        or kind is type(None)
        or hashes is object.__hash__
        or hashes in NUMBERS
    ):
        return True
    known = (str, bytes, enum.Enum, enum.Flag, range, datetime.date, datetime.datetime, datetime.time)
    return any(hashes is one.__hash__ for one in known) or _is_number_of_numpy(kind)
