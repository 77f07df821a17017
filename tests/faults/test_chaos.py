"""A short soak (`chaos.py`), so that the long one, `nox -s chaos`, is known to work, and to find nothing."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import Scripts

SOAK = Path(__file__).with_name("chaos.py")


def test_nothing_is_off_after_random_kills(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    arguments = ("--seconds", "15", "--seed", "5", "--every", "1.2", "--workers", "2")
    try:
        out, _ = scripts.run(SOAK, *arguments, seconds=180)
    finally:
        scripts.check(10)
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert rows["verdict"] == "nothing is off"
    assert rows["elements lost"] == rows["elements doubled"] == rows["wrong values"] == "0"
    assert int(rows["results checked in order"].replace(",", "")) > 0
    assert int(rows["kills survived"].partition(":")[0]) > 0
