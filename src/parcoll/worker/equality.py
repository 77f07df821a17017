"""Whether two values of a fold are the same, as far as that can be told."""

from __future__ import annotations

import math
from typing import Any

from parcoll.wire.payload import Packed

JUDGED = (str, bytes, bool, set, frozenset, type(None))


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are surely equal: by `==`, or (arrays) by their pickles."""
    try:
        if bool(one == other):
            return True
    except Exception:
        pass  # an array of truths has no truth
    first, second = Packed.pack(one), Packed.pack(other)
    return (first.head, first.buffers) == (second.head, second.buffers)


def differs(one: Any, other: Any) -> bool:
    """Tell whether two values surely differ: builtin ones, by more than a rounding."""
    try:
        if bool(one == other):
            return False
    except Exception:
        return False
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return not math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) and one == one
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if type(one) is type(other) and isinstance(one, (list, tuple)):
        return len(one) != len(other) or any(map(differs, one, other))
    return type(one) is type(other) and isinstance(one, JUDGED)
