"""The tables for who comes from elsewhere: each of our calls runs, and answers as theirs where it is here."""

from __future__ import annotations

import collections
import functools
import re
import statistics
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import dask
import dask.bag
import pytest

import parcoll

try:
    import joblib
except ImportError:  # only the benchmarks need it
    joblib = None

PAGES = sorted(Path(__file__).parents[2].joinpath("docs", "coming_from").glob("*.md"))
THEIRS_RUN = {"loops", "pool", "futures", "dask_bag"} | ({"joblib"} if joblib else set())
ROW = re.compile(r"^\| `(.+)` \| `(.+)` \| .+ \|$", re.MULTILINE)


def names() -> dict[str, Any]:
    """Return what the calls in the tables refer to."""
    found: dict[str, Any] = {name: getattr(parcoll, name) for name in parcoll.__all__}
    found |= {
        "functools": functools,
        "collections": collections,
        "statistics": statistics,
        "db": dask.bag,
        "as_completed": as_completed,
    }
    found |= {"xs": [3, 1, 2, 1], "ys": [10, 20, 30, 40], "delayed": dask.delayed}
    found |= {"f": lambda x: x * x, "f2": lambda x, y: x + y, "p": lambda x: x > 1, "g": lambda x: [x] * x}
    found |= {"h": list, "pairs": [("a", 1), ("b", 2), ("a", 3)], "key": lambda pair: pair[0]}
    found |= {
        "rows": [{"shop": "a", "price": 2}, {"shop": "b", "price": 1}],
        "price": lambda row: row["price"],
    }
    found |= {"add_value": lambda total, pair: total + pair[1], "shop": lambda row: row["shop"], "total": len}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_call_runs_and_answers_as_theirs(page):
    rows = ROW.findall(page.read_text(encoding="utf-8"))
    assert len(rows) >= 4
    known, compared = names(), page.stem in THEIRS_RUN
    if page.stem == "joblib" and joblib is not None:
        known |= {"Parallel": functools.partial(joblib.Parallel, prefer="threads"), "delayed": joblib.delayed}
    with (
        ThreadPool(2) as pool,
        ThreadPoolExecutor(2) as executor,
        dask.config.set(scheduler="synchronous"),
        parcoll.connect("inline"),
    ):
        known |= {"pool": pool, "executor": executor}
        for theirs, ours in rows:
            if ours.startswith("from ") or "to_pandas" in ours:
                continue
            found = eval(ours, known)
            if compared:
                assert found == eval(theirs, known), (theirs, ours)


def test_each_method_of_theirs_is_answered_with_ours():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    theirs = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| `")]
    methods = set(re.findall(r"(?:\)|`)\.(\w+)\(", "\n".join(theirs)))
    assert {"zipWithIndex", "map_groups", "pluck", "takeOrdered"} <= methods
    for name in methods - set(dir(parcoll.ParallelGen)):
        with pytest.raises(AttributeError, match=f"has no attribute {name!r}: write "):
            getattr(parcoll.parallel([1]), name)
