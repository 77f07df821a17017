"""Elements that are no rows, rows of other columns, and files given or encoded otherwise: what to write."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, parallel, read_csv, read_files, read_text

pa: Any = pytest.importorskip("pyarrow")
pd: Any = pytest.importorskip("pandas")


@dataclasses.dataclass
class Sale:
    shop: str
    price: float


class Model:
    """Stands for one of pydantic's."""

    def model_dump(self) -> dict[str, Any]:
        return {"shop": "a", "price": 1.5}


Named = collections.namedtuple("Named", "shop price")
ROW: dict[str, Any] = {"shop": "a", "price": 1.5}
names = list(ROW)
# What is given, what the message says to use, and that.
NO_ROWS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Sale("a", 1.5), "map(dataclasses.asdict)", lambda p: p.map(dataclasses.asdict)),
    (Named("a", 1.5), "map(lambda row: row._asdict())", lambda p: p.map(lambda row: row._asdict())),
    (pd.Series(ROW), "map(lambda row: row.to_dict())", lambda p: p.map(lambda row: row.to_dict())),
    (Model(), "map(lambda row: row.model_dump())", lambda p: p.map(lambda row: row.model_dump())),
    (
        ["a", 1.5],
        "map(lambda row: dict(zip(names, row)))",
        lambda p: p.map(lambda row: dict(zip(names, row))),  # noqa: B905
    ),
    (
        pd.DataFrame([ROW]),
        'flatmap(lambda frame: frame.to_dict("records"))',
        lambda p: p.flatmap(lambda frame: frame.to_dict("records")),
    ),
    (
        pa.Table.from_pylist([ROW]),
        "flatmap(lambda table: table.to_pylist())",
        lambda p: p.flatmap(lambda table: table.to_pylist()),
    ),
    (
        pa.RecordBatch.from_pylist([ROW]),
        "flatmap(lambda table: table.to_pylist())",
        lambda p: p.flatmap(lambda table: table.to_pylist()),
    ),
]


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("given", "said", "mended"), NO_ROWS, ids=[type(row[0]).__name__ for row in NO_ROWS])
def test_what_is_no_row_is_told_how_it_becomes_one(
    given: Any, said: str, mended: Callable[[Any], Any], tmp_path: Path
) -> None:
    chain, rows = parallel([given]), mended(parallel([given]))
    calls: list[tuple[Callable[[Any], Any], type[Exception]]] = [
        (lambda p: p.to_pandas(), ValueError),
        (lambda p: p.to_arrow(), ValueError),
        (lambda p: p.write_parquet(tmp_path / "rows.parquet"), ValueError),
    ]
    if not isinstance(given, (list, tuple)):  # with columns= these are rows of csv
        calls.append((lambda p: p.write_csv(tmp_path / "rows.csv"), TypeError))
    for call, kind in calls:
        with pytest.raises(kind, match=re.escape(f": use {said} before it")):
            call(chain)
        call(rows)
    assert rows.to_arrow().to_pylist() == [ROW]


@pytest.mark.usefixtures("inline")
def test_what_may_be_anything_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"got 3 \(an int\): make one of it before, as in map\(lambda value:"
    ):
        parallel([3]).to_pandas()
    with pytest.raises(
        TypeError, match=r"\(a type\): a class is no row, and what a call of it returns may be"
    ):
        parallel([Sale]).write_csv(tmp_path / "rows.csv")


@pytest.mark.usefixtures("inline")
def test_a_column_too_many_is_told_where_it_goes(tmp_path: Path) -> None:
    said = ": name it there, or have map() leave it out"
    with pytest.raises(ValueError, match=re.escape(f"'price', which is not in columns=['shop']{said}")):
        parallel([ROW]).write_csv(tmp_path / "rows.csv", columns=["shop"])
    schema = pa.schema([("shop", pa.string())])
    with pytest.raises(ValueError, match=re.escape(f"'price', which is not in schema={said}")):
        parallel([ROW]).write_parquet(tmp_path / "rows.parquet", schema=schema)


def test_an_open_file_is_no_path(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a\nb\n")
    with open(path) as file:
        with pytest.raises(TypeError, match=r": pass its name, or write parallel\(file\) for the"):
            read_text(file)  # type: ignore[arg-type]
        assert list(parallel(file)) == ["a\n", "b\n"]
    with pytest.raises(TypeError, match=r"got 3 \(an int\)$"):
        read_text(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "read",
    [read_text, read_csv, lambda path, **how: read_files(path, mode="r", **how)],
    ids=["text", "csv", "files"],
)
def test_another_encoding_is_asked_for(read: Any, tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes("item,price\nBrötchen,2\n".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError) as caught:
        list(read(path))
    assert 'pass the encoding that the file has, as in encoding="latin-1"' in caught.value.__notes__
    assert "Brötchen" in str(list(read(path, encoding="latin-1")))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.write_csv("a", sep=";"), "sep=: write write_text(path), of lines that map() makes"),
        (
            lambda p: p.write_csv("a", delimiter=";"),
            "delimiter=: write write_text(path), of lines that map() makes",
        ),
        (lambda p: p.write_csv("a", fieldnames=["x"]), "fieldnames=: write columns="),
        (lambda p: p.write_parquet("a", index=False), "index=: write nothing: rows have no index"),
        (lambda p: p.write_text("a", mode="a"), "mode=: write overwrite=True, or another path"),
        (lambda p: p.write_jsonl("a", lines=True), "lines=: write nothing: each row is a line"),
        (lambda p: p.write_csv("a", nothing=1), "nothing=: it takes path, columns, "),
    ],
)
def test_how_others_write_is_answered_with_ours(call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"has no {said}")):
        call(parallel([ROW]))
