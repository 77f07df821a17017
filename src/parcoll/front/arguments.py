"""Arguments: checks of what users pass.

Each check returns the value as it is meant, or raises an error that says what is allowed and what was given.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Required, TypedDict, get_args

from parcoll.calls import waiting
from parcoll.calls.batches import FORMATS
from parcoll.calls.rates import Rate
from parcoll.chain.policy import PLAIN, OnError, Policy, RetryOn
from parcoll.chain.steps import Step
from parcoll.evaluation.plan import Derived
from parcoll.evaluation.run import Options
from parcoll.keys.joins import HOW
from parcoll.mistakes import no_function, no_setting
from parcoll.text import describe, function_name, short_repr

AWAITED = ("map", "filter", "flatmap", "foreach", "starmap")  # methods whose functions may be `async`
MOST_SECONDS = 1e9  # 32 years; a longer timeout is none, and may be too long for a clock


class Tries(TypedDict, total=False):
    """The settings of a step for its attempts with one element; None means what `parallel` was told."""

    retries: int | None
    retry_on: RetryOn | None
    timeout: float | None


class Calls(Tries, total=False):
    """Those, and how many calls may run, or begin, at the same time; None means no limit."""

    concurrency: int | None
    rate: tuple[int, float] | None


class Skips(Calls, total=False):
    """The settings of a step where no function stands for elements that fail."""

    on_error: Literal["raise", "skip"] | None


class StepSettings(Calls, total=False):
    """All settings of a step: those of its attempts, and what becomes of an element if all of them fail."""

    on_error: OnError | None


class KeySkips(Tries, total=False):
    """The settings of a key or a predicate, where no function stands for elements that fail."""

    on_error: Literal["raise", "skip"] | None


class KeySettings(Tries, total=False):
    """All settings of a key or a predicate."""

    on_error: OnError | None


class ListBatches(Tries, total=False):
    """The settings of batches that are lists."""

    format: Literal["list"]
    flat: bool


class OtherBatches(Tries, total=False):
    """The settings of batches that are arrays or tables."""

    on_error: OnError | None
    format: Required[Literal["numpy", "arrow", "pandas"]]
    flat: bool


def function(func: Any, method: str, instead: str = "") -> Any:
    """Return the function that a method was given; `instead` ends the message for what is none."""
    if not callable(func):
        instead = instead or no_function(method, func)
        raise TypeError(f"{method}() needs a function, got {describe(func)}{instead}")
    if method in AWAITED and method != "flatmap" and waiting.is_generator(func):
        raise TypeError(
            f"{method}() takes one result of a call, and {function_name(func)} is an asynchronous generator: "
            "use flatmap, which takes all that it gives"
        )
    return _plain(func, f"{method}()") if method not in AWAITED else func


def _plain(func: Any, what: str) -> Any:
    """Refuse an `async def` function where nobody awaits what it returns."""
    if waiting.is_async(func):
        instead = ": await it in a map() before, whose results this gets" if what.endswith(")") else ""
        raise TypeError(
            f"{what} needs a plain function, got the `async def` function {function_name(func)}{instead}"
        )
    return func


def partition_size(given: Any) -> int | str:
    """Return a `partition_size`: "auto" or a number of elements."""
    if given == "auto" and isinstance(given, str):
        return "auto"
    return whole_number(given, 'partition_size must be "auto" or a whole number')


def buffersize(given: Any) -> int | None:
    """Return a `buffersize`: None or a number of elements."""
    return None if given is None else whole_number(given, "buffersize must be None or a whole number")


def whole_number(given: Any, wanted: str, least: int = 1) -> int:
    """Return a whole number from `least` up; `wanted` begins the message that refuses anything else."""
    try:
        number = operator.index(given)
    except TypeError:
        raise TypeError(f"{wanted} from {least} up, got {describe(given)}") from None
    if isinstance(given, bool) or number < least:
        raise ValueError(f"{wanted} from {least} up, got {short_repr(given)}")
    return number


def number_of_bytes(given: Any, wanted: str) -> int:
    """Return a size, which may be a text; `wanted` begins the message for what is none."""
    if not isinstance(given, str):
        return whole_number(given, wanted)
    from dask.utils import parse_bytes

    try:
        number = int(parse_bytes(given))
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ValueError(f"{wanted} from 1 up, got {short_repr(given)}")
    return number


def client(given: Any) -> Any:
    """Return a `client`: a `distributed.Client`, or None."""
    # Not imported here, which takes 0.5 s: without its class loaded, there can be no client.
    kind = getattr(sys.modules.get("distributed"), "Client", None)
    if given is not None and not (kind is not None and isinstance(given, kind)):
        raise TypeError(f"client must be a distributed.Client, got {describe(given)}")
    return given


def name(given: Any) -> str | None:
    """Return a `name`: a string, or None."""
    if given is not None and not isinstance(given, str):
        raise TypeError(f"name must be a string, got {describe(given)}")
    return given


def progress(given: Any) -> bool | str | None:
    """Return a `progress`: True, False, a label, or None."""
    if given is not None and not isinstance(given, bool | str):
        raise TypeError(f"progress must be True, False or a label, got {describe(given)}")
    return given


def checkpoint(given: Any) -> str | None:
    """Return a `checkpoint` as the text of its path or URL, or None."""
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a folder's path or URL, got {describe(given)}")
    path = os.fspath(given)
    if not isinstance(path, str) or not path:
        raise ValueError(f"checkpoint must be a folder's path or URL, got {given!r}")
    return path


def retry_failed(given: Any, checkpoint: Any) -> bool:
    """Return a `retry_failed`, which goes with a checkpoint only."""
    if not isinstance(given, bool):
        raise TypeError(f"retry_failed must be True or False, got {describe(given)}")
    if given and checkpoint is None:
        raise ValueError(
            "retry_failed=True runs again what had failed in an earlier run with the same checkpoint=, and "
            "this has none: pass checkpoint=, or leave retry_failed out"
        )
    return given


def no_checkpoint(given: str | None, method: str, instead: str) -> None:
    """Refuse a method that a collection with a checkpoint has no use for."""
    if given is not None:
        raise TypeError(
            f"{method}() keeps its results on the workers, so checkpoint={given!r} cannot save them: use "
            f"{instead}, or leave checkpoint out"
        )


def no_checkpoint_of_keys(given: str | None, method: str) -> None:
    """Refuse a checkpoint where elements of all partitions come together."""
    if given is not None:
        raise TypeError(
            f"{method}() brings elements of all partitions together, and checkpoint={given!r} cannot resume "
            f"that: save what comes before it, saved = list(collection), and write parallel(saved).{method}"
            "(...), or leave checkpoint out"
        )


def batches(size: Any, format: Any, flat: Any) -> tuple[int | str, str, bool]:
    """Return the settings of batches."""
    if not (isinstance(size, str) and size == "auto"):
        size = whole_number(size, 'size must be "auto" or a whole number')
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(
            f"format must be {', '.join(map(repr, FORMATS))}, got {short_repr(format)}".replace("'", '"')
        )
    if not isinstance(flat, bool):
        raise TypeError(f"flat must be True or False, got {describe(flat)}")
    return size, format, flat


def of_derived(options: Options, source: Derived, size: int = 1, instead: str = "") -> Options:
    """Return the settings of a collection of what is made of `size` elements each, of which those count then.

    `instead` is what may be used with a checkpoint.
    """
    if options.checkpoint is not None and not source.is_alone:
        operation = source.operation
        nothing = (
            f"in an evaluation of its own, of which checkpoint={options.checkpoint!r} would save nothing"
        )
        if operation.asks:
            raise TypeError(f"{operation.name}() calls its function {nothing}: leave checkpoint out")
        raise TypeError(
            f"{operation.label} has the steps before it run {nothing}: call {operation.name}() first, "
            f"{instead}or leave checkpoint out"
        )
    partition_size, buffersize = options.partition_size, options.buffersize
    return dataclasses.replace(
        options,
        partition_size=max(partition_size // size, 1) if isinstance(partition_size, int) else partition_size,
        buffersize=None if buffersize is None else max(buffersize // size, 1),
    )


def how(given: Any) -> str:
    """Return how to join."""
    if not isinstance(given, str) or given not in HOW:
        allowed = ", ".join(f'"{word}"' for word in HOW)
        raise ValueError(f"how must be {allowed}, got {short_repr(given)}")
    return given


def probability(given: Any) -> float:
    """Return a probability."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"sample() needs a probability from 0 to 1, got {describe(given)}")
    if not 0 <= given <= 1:
        raise ValueError(f"sample() needs a probability from 0 to 1, got {short_repr(given)}")
    return float(given)


def seed(given: Any) -> int | float | str | bytes:
    """Return a seed."""
    if not isinstance(given, int | float | str | bytes):
        raise TypeError(f"seed must be a number, a string or bytes, got {describe(given)}")
    return given


def taken(given: Any) -> int:
    """Return how many elements `take` was asked for."""
    try:
        number = operator.index(given)
    except TypeError:
        raise TypeError(f"take() needs a whole number, got {describe(given)}") from None
    if number < 0:
        raise ValueError(f"take() needs a number from 0 up, got {short_repr(number)}")
    return min(number, sys.maxsize)  # no collection has more


def policy(
    on_error: Any, retries: Any, retry_on: Any, timeout: Any, of_chain: Policy | None = None
) -> Policy:
    """Return the settings for elements that fail; in a step, None stands for the setting of its chain."""
    default = of_chain or PLAIN
    made = Policy(
        _on_error(on_error) if on_error is not None or of_chain is None else default.on_error,
        whole_number(retries, "retries must be a whole number", 0)
        if retries is not None or of_chain is None
        else default.retries,
        _retry_on(retry_on) if retry_on is not None or of_chain is None else default.retry_on,
        default.timeout if timeout is None else _timeout(timeout),
    )
    if of_chain is not None and retry_on is not None and not made.retries:
        raise ValueError(
            "retry_on has no effect without retries: pass retries=1 or more, or leave retry_on out; got "
            f"retry_on={describe(retry_on)}"
        )
    return made


POLICY_SETTINGS = ("on_error", "retries", "retry_on", "timeout")
STEP_SETTINGS = (*POLICY_SETTINGS, "concurrency", "rate")


def step(kind: type[Step], func: Any, settings: Mapping[str, Any], of_chain: Policy) -> Step:
    """Return the step that calls `func`, as its settings say."""
    if func is not None or not kind.may_lack_function:
        func = function(func, kind.kind)
    made = step_policy(kind.kind, func, settings, of_chain, STEP_SETTINGS)
    concurrency, rate = _concurrency(settings.get("concurrency")), _rate(settings.get("rate"))
    found = waiting.step(kind, func, made, concurrency, rate)
    if isinstance(found, waiting.Waiting) and not found.is_async and made.timeout is not None:
        which = "concurrency" if concurrency is not None else "rate"
        raise ValueError(
            f"timeout={made.timeout:g} cannot stop one of several calls in threads, which {which}="
            f"{settings[which]!r} makes of {function_name(func)}: make it an `async def` function, or pass "
            "timeout=math.inf and have what it calls give up"
        )
    return found


def _concurrency(given: Any) -> int | None:
    return None if given is None else whole_number(given, "concurrency must be None or a whole number")


def _rate(given: Any) -> Rate | None:
    wanted = "rate must be (calls, seconds), a whole number from 1 up and a number above 0, as in (10, 1.0)"
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{wanted}, got {describe(given)}")
    calls, seconds = given
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{wanted}, got {short_repr(given)}")
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"{wanted}, got {short_repr(given)}")
    return Rate(whole_number(calls, f"{wanted}: calls must be a whole number"), float(seconds))


def step_policy(
    method: str,
    func: Any,
    settings: Mapping[str, Any],
    of_chain: Policy,
    known: Sequence[str] = POLICY_SETTINGS,
) -> Policy:
    """Return what a step's settings mean for elements that fail."""
    if not settings:
        return of_chain
    for given in settings:
        if given not in known:
            name = "func" if func is None or function_name(func) == "lambda" else function_name(func)
            raise TypeError(
                f"{method}() has no setting {given!r}{no_setting(method, given, known)}; to pass it to the "
                f"function, use functools.partial({name}, {given}=...)"
            )
    on_error, retries, retry_on, timeout = (settings.get(name) for name in POLICY_SETTINGS)
    return policy(on_error, retries, retry_on, timeout, of_chain)


def _on_error(given: Any) -> Any:
    wanted = 'on_error must be "raise", "skip" or a function of an ElementError'
    if isinstance(given, str):
        if given not in ("raise", "skip"):
            raise ValueError(f"{wanted}, got {short_repr(given)}")
    elif not callable(given) or (isinstance(given, type) and issubclass(given, BaseException)):
        raise TypeError(f"{wanted}, got {describe(given)}")
    return given if isinstance(given, str) else _plain(given, "on_error")


def _timeout(given: Any) -> float | None:
    wanted = "timeout must be a number of seconds above 0"
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"{wanted}, got {describe(given)}")
    if not given > 0:
        raise ValueError(f"{wanted}, got {short_repr(given)}")
    return None if given > MOST_SECONDS else float(given)


def _retry_on(given: Any) -> Any:
    kinds = get_args(given) if isinstance(given, UnionType) else given
    kinds = (kinds,) if isinstance(kinds, type) else kinds
    if isinstance(kinds, tuple):
        if kinds and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            return kinds
    elif callable(kinds):
        return _plain(kinds, "retry_on")
    raise TypeError(
        "retry_on must be a subclass of Exception, a tuple of them or a function of the exception, got "
        f"{describe(given)}"
    )
