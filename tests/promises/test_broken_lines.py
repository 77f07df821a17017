"""A line that is no JSON, or no row, is one element that failed: the others of its file are there."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, read_archive, read_csv, read_jsonl, read_parquet, read_text

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


def test_a_row_that_the_dialect_refuses_is_left_out_alone(tmp_path: Path, place: Connection) -> None:
    """Its lines are passed as a whole: what stands in quotes is no row."""
    path = tmp_path / "a.csv"
    path.write_text('"n","s"\n1,"a"\nx,"b\n3,c\n"\n4,"d"\n"5\n",y,"\n6,e\n"\n7,"f"\n')
    rows = read_csv(path, quoting=csv.QUOTE_NONNUMERIC, on_error="skip")
    assert list(rows) == [{"n": 1.0, "s": "a"}, {"n": 4.0, "s": "d"}, {"n": 7.0, "s": "f"}]
    first, second = (str(error.exception) for error in rows.errors)
    assert first.startswith(
        f"{str(path)!r}, line 3 is no row of the csv dialect (could not convert string to"
    )
    assert second.startswith(f"{str(path)!r}, line 7 is no row of the csv dialect")
    with pytest.raises(ValueError, match=r"a\.csv', line 3 is no row of the csv dialect"):
        list(read_csv(path, quoting=csv.QUOTE_NONNUMERIC))
    path.write_text('n,s\n1,"a"\n"2"x,b\n3,"c\n')
    rows = read_csv(path, strict=True, on_error="skip")
    assert list(rows) == [{"n": "1", "s": "a"}]
    assert ["line 3 " in str(rows.errors[0].exception), "line 4 " in str(rows.errors[1].exception)] == [
        True
    ] * 2
    path.write_bytes(b'"n"\n1\nx\n2\n\xff\n3\n')
    rows = read_csv(path, quoting=csv.QUOTE_NONNUMERIC, on_error="skip")
    assert list(rows) == [{"n": 1.0}, {"n": 2.0}]
    assert [type(error.exception) for error in rows.errors] == [ValueError, UnicodeDecodeError]
    path.write_text("n\n1\n")
    with pytest.raises(ValueError, match=r"a\.csv', line 1 is no row of the csv dialect"):
        list(read_csv(path, quoting=csv.QUOTE_NONNUMERIC))


def test_a_file_that_cannot_be_cut_is_left_out_alone(tmp_path: Path, place: Connection) -> None:
    """What a zip or a parquet file says of its parts stands at its end, which may be missing."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"x": [1, 2]})
    for name in "abc":
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=1)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("one", name)
            archive.writestr("two", name)
    whole = {path: path.read_bytes() for path in (tmp_path / "b.parquet", tmp_path / "b.zip")}
    for path, content in whole.items():
        path.write_bytes(content[:-40])
    rows = read_parquet(tmp_path / "*.parquet", on_error="skip")
    assert list(rows) == [{"x": 1}, {"x": 2}] * 2
    members = read_archive(tmp_path / "*.zip", on_error="skip")
    assert list(members) == [(member, name) for name in (b"a", b"c") for member in ("one", "two")]
    assert [error.element.path for error in (*rows.errors, *members.errors)] == list(map(str, whole))
    assert "has no directory at its end: it was cut short" in str(members.errors[0].exception)
    with pytest.raises(zipfile.BadZipFile, match="it was cut short"):
        read_archive(tmp_path / "*.zip")
    for path, content in whole.items():  # each further evaluation looks at the files anew
        path.write_bytes(content)
    assert (rows.count(), rows.errors) == (6, [])
    assert (members.count(), members.errors) == (6, [])
    with pytest.raises(ValueError, match="has no column 'y'"):
        read_parquet(tmp_path / "*.parquet", columns=["y"], on_error="skip")
