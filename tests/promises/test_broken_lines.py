"""A line that is no JSON, or no row, is one element that failed: the others of its file are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, read_csv, read_jsonl, read_text

# Ten broken lines in each file, the first of them line 8, or 9 behind the names of columns.
LINES = {
    "jsonl": [json.dumps({"x": x}) if x % 100 != 7 else "{broken" for x in range(1000)],
    "csv": ["x", *(str(x) if x % 100 != 7 else "1,2" for x in range(1000))],
}
READ: dict[str, Any] = {"jsonl": read_jsonl, "csv": read_csv}


@pytest.mark.parametrize("suffix", LINES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"timeout": 20}, {"retries": 1}, {"include_path": True}, {"blocksize": 400}],
    ids=lambda settings: " ".join(settings) or "alone",
)
def test_it_is_left_out_or_has_something_in_its_place(
    tmp_path: Path, place: Connection, suffix: str, settings: dict[str, Any]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.{suffix}").write_text("\n".join(LINES[suffix]))
    if "blocksize" in settings and suffix == "csv":
        settings = settings | {"newlines_in_values": False}
    rows = READ[suffix](tmp_path / f"*.{suffix}", on_error="skip", **settings)
    found = [row[0] if "include_path" in settings else row for row in rows]
    assert [int(row["x"]) for row in found] == 2 * [x for x in range(1000) if x % 100 != 7]
    assert rows.stats.failed == len(rows.errors) == 20
    if "blocksize" not in settings:
        number = {"jsonl": 8, "csv": 9}[suffix]
        for at, name in (0, "a"), (10, "b"):
            assert f"{name}.{suffix}', line {number} " in str(rows.errors[at].exception)
    mended = list(READ[suffix](tmp_path / f"a.{suffix}", on_error=lambda error: None, **settings))
    assert [at for at, row in enumerate(mended) if row is None] == list(range(7, 1000, 100))
    assert len(mended) == 1000
    with pytest.raises(ValueError, match=r"is no JSON value|has 2 values"):
        list(READ[suffix](tmp_path / f"a.{suffix}", **settings))


def test_where_it_is_can_be_opened(tmp_path: Path, place: Connection) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        path.write_text("1\n{broken\n3\n")
    values = read_jsonl(tmp_path / "*.jsonl", on_error="skip")
    assert list(values) == [1, 3, 1, 3]
    assert [Path(error.element) for error in values.errors] == paths
    assert [error.element.path for error in values.errors] == [str(path) for path in paths]
    for error, path in zip(values.errors, paths, strict=True):
        assert f"{str(path)!r}, line 2 " in str(error.exception)
        with open(error.element) as file:
            assert file.readlines()[1] == "{broken\n"
    assert read_text([error.element for error in values.errors]).count() == 6
    parts = read_jsonl(paths, blocksize=4, on_error=lambda error: Path(error.element).read_text())
    assert [value for value in parts if isinstance(value, str)] == 2 * ["1\n{broken\n3\n"]


def test_lines_are_read_again_once_they_are_mended(tmp_path: Path, place: Connection) -> None:
    path, whole = tmp_path / "a.jsonl", [{"x": x} for x in range(50)]
    good = [json.dumps(row) for row in whole]
    path.write_text("\n".join([*good[:7], "{", *good[8:20], "}", *good[21:]]))

    def rows(**settings: Any) -> list[Any]:
        return list(read_jsonl(path, on_error="skip", checkpoint=tmp_path / "saved", **settings))

    assert [row["x"] for row in rows()] == [x for x in range(50) if x not in (7, 20)]
    path.write_text("\n".join(good))
    assert rows(retry_failed=True) == whole
    assert rows() == whole


def test_what_a_function_raises_for_it_ends_the_evaluation(tmp_path: Path, place: Connection) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\nbroken\n3\n")

    def refuse(error: object) -> None:
        raise LookupError("refused")

    with pytest.raises(LookupError, match="refused"):
        list(read_jsonl(path, on_error=refuse))
