"""`write_parquet`, `to_arrow`, `to_pandas`: rows as tables, and rows that do not fit."""

from __future__ import annotations

import math
import os
import random
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parcoll import Connection, ParallelGen, parallel, read_parquet
from parcoll.output.kinds import inferred
from parcoll.output.tables import plain_column

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def record(x: int) -> dict[str, Any]:
    """Make a row."""
    return {
        "x": x,
        "text": "é" * (x % 4),
        "half": x / 2,
        "maybe": None if x % 3 else x,
        "list": [x] * (x % 3),
        "more": {"a": x, "b": [date(2020, 1, 1 + x % 28)]},
    }


ROWS = [record(x) for x in range(1000)]
EAST = timezone(timedelta(hours=2))
NOON = datetime(2020, 1, 1, 12)


def rows(**options: Any) -> ParallelGen[dict[str, Any]]:
    """Return the rows as a collection."""
    return parallel(range(1000), **options).map(record)


def names(folder: Path) -> list[str]:
    """Return all that is in a folder."""
    return sorted(os.listdir(folder))


class TestParquet:
    """Files of parquet."""

    def test_rows_come_back(self, cluster: Connection, tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        written = rows().write_parquet(path)
        assert parquet.read_table(path).to_pylist() == ROWS
        assert written == ([str(path)], 1000, path.stat().st_size)
        written = rows().write_parquet(tmp_path / "p-*.parquet", rows_per_file=300, compression="zstd")
        tables = [parquet.read_table(file) for file in written.files]
        assert [table.num_rows for table in tables] == [300, 300, 300, 100]
        assert [row for table in tables for row in table.to_pylist()] == ROWS
        assert len({str(table.schema) for table in tables}) == 1
        assert len(names(tmp_path)) == 5

    @pytest.mark.parametrize(
        "how",
        [
            {"bytes_per_file": 9999},
            pytest.param({}, marks=pytest.mark.slow),
            pytest.param({"rows_per_file": 77}, marks=pytest.mark.slow),
            pytest.param({"schema": pyarrow.table({}).schema}, marks=pytest.mark.slow),
        ],
    )
    def test_files_do_not_depend_on_partitions(
        self, inline: Connection, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("parcoll.output.parquet.GROUP_ROWS", 64)
        monkeypatch.setattr("parcoll.output.parquet.IN_MEMORY", 20_000)  # the rest is on the disk
        found = []
        if "schema" in how:
            how = {"schema": pyarrow.Table.from_pylist(ROWS).schema}
        for size in (9, 13, 1000):
            path = tmp_path / str(size) / ("part-*" if len(how) and "schema" not in how else "out")
            written = rows(partition_size=size).write_parquet(path, **how)
            assert [row for file in written.files for row in parquet.read_table(file).to_pylist()] == ROWS
            found.append([Path(file).read_bytes() for file in written.files])
        assert found[0] == found[1] == found[2]

    def test_an_empty_one_has_its_schema(self, inline: Connection, tmp_path: Path) -> None:
        schema = pyarrow.schema([("a", pyarrow.int8())])
        parallel([]).write_parquet(tmp_path / "a", schema=schema)
        assert parquet.read_table(tmp_path / "a").schema == schema
        assert parallel([]).write_parquet(tmp_path / "b").rows == 0
        assert parquet.read_table(tmp_path / "b").num_rows == 0

    def test_types_make_room_within_the_first_file(self, inline: Connection, tmp_path: Path) -> None:
        given: list[dict[str, Any]] = [
            *({"a": None}, {"a": 1}, {"a": 2.5, "b": "x"}, {"b": None, "c": [None]}, {"c": [3]}),
            {"d": {"x": 1}},
            {"d": {"y": "z"}},
            {"e": Decimal("1.5")},
            {"e": 3},
        ]
        for size in (1, 2, 100):
            path = tmp_path / str(size)
            parallel(given, partition_size=size).write_parquet(path)
            kinds = {field.name: str(field.type) for field in parquet.read_schema(path)}
            assert kinds == {
                "a": "double",
                "b": "string",
                "c": "list<element: int64>",
                "d": "struct<x: int64, y: string>",
                "e": "decimal128(20, 1)",
            }
            assert parquet.read_table(path).column("a").to_pylist() == [None, 1.0, 2.5, *[None] * 6]


MISFITS = [
    ({"a": "x"}, "a"),
    ({"a": 2.5}, "a"),
    ({"a": 1, "new": 1}, "new"),
    ({"a": [1]}, "a"),
    ({"a": {"b": 1}}, "a"),
    ({"a": date(2020, 1, 1)}, "a"),
    ({"a": Decimal("1.5")}, "a"),
    ({"a": 2**70}, "a"),
    ({"a": object()}, "a"),
    ({"a": b"x"}, "a"),
    ({"a": True}, "a"),
]


class TestMisfits:
    """Rows that do not fit are errors that name column and element, and never nulls."""

    @pytest.mark.parametrize(("bad", "column"), MISFITS)
    def test_into_a_schema_that_is_given(
        self, inline: Connection, tmp_path: Path, bad: dict[str, Any], column: str
    ) -> None:
        schema = pyarrow.schema([("a", pyarrow.int64())])
        with pytest.raises(ValueError, match=f"column '{column}'") as caught:
            parallel([{"a": 1}] * 7 + [bad], on_error="skip").write_parquet(tmp_path / "out", schema=schema)
        assert caught.value.__notes__[0].startswith("in write_parquet, at element 7: {'a': ")
        assert names(tmp_path) == []

    @pytest.mark.parametrize("size", [1, 5, 100])
    @pytest.mark.parametrize(("bad", "column"), MISFITS)
    def test_into_that_of_the_first_file(
        self, inline: Connection, tmp_path: Path, bad: dict[str, Any], column: str, size: int
    ) -> None:
        chain = parallel([{"a": 1}] * 6 + [bad] + [{"a": 1}] * 5, partition_size=size)
        with pytest.raises(ValueError, match=f"column '{column}'") as caught:
            chain.write_parquet(tmp_path / "out-*", rows_per_file=3)
        text = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
        assert "row 6 " in text or "element 6" in text
        assert names(tmp_path) == []

    @pytest.mark.parametrize("size", [1, 100])
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (date(2020, 1, 1), datetime(2020, 1, 1, 12)),
            (datetime(2020, 1, 1, 12), date(2020, 1, 1)),
            ("x", b"x"),
            (1.5, Decimal("1.5")),
            (True, 1),
            ([date(2020, 1, 1)], [datetime(2020, 1, 1, 12)]),
            (2**60 + 1, 1.5),
        ],
    )
    def test_two_types_without_one_for_both(
        self, inline: Connection, tmp_path: Path, one: Any, other: Any, size: int
    ) -> None:
        chain = parallel([{"a": one}, {"a": other}], partition_size=size)
        with pytest.raises(ValueError, match="column 'a'"):
            chain.to_arrow()
        with pytest.raises(ValueError, match="column 'a'"):
            chain.write_parquet(tmp_path / "out")

    def test_times_in_a_column_of_dates(self, inline: Connection) -> None:
        chain = parallel([{"a": datetime(2020, 1, 1, 12, 0, 0, 5)}])
        for kind in (pyarrow.date32(), pyarrow.timestamp("s")):
            with pytest.raises(ValueError, match="it would become"):
                chain.to_arrow(pyarrow.schema([("a", kind)]))
        assert chain.to_arrow(pyarrow.schema([("a", pyarrow.timestamp("us", "UTC"))])).num_rows == 1

    @pytest.mark.parametrize("size", [1, 100])
    def test_types_are_those_of_the_first_file_alone(
        self, inline: Connection, tmp_path: Path, size: int
    ) -> None:
        given: list[dict[str, Any]] = [
            *({"a": 1, "b": None, "c": [1]}, {"a": 2}, {"a": 3.0, "c": [2.0]}, {"a": None, "d": None}),
        ]
        written = parallel(given, partition_size=size).write_parquet(tmp_path / "out-*", rows_per_file=2)
        schemas = [parquet.read_schema(file) for file in written.files]
        assert [str(field.type) for field in schemas[0]] == ["int64", "null", "list<element: int64>"]
        assert schemas[0] == schemas[1]

    @pytest.mark.parametrize("size", [1, 100])
    def test_texts_and_numbers_in_one_file(self, inline: Connection, tmp_path: Path, size: int) -> None:
        chain = parallel([{"a": 1}] * 6 + [{"a": "x"}], partition_size=size)
        with pytest.raises(ValueError, match="'x' in column 'a'"):
            chain.write_parquet(tmp_path / "out")
        with pytest.raises(ValueError, match="'x' in column 'a'"):
            chain.to_arrow()

    def test_what_is_no_mapping_or_not_there(self, inline: Connection, tmp_path: Path) -> None:
        schema = pyarrow.schema([pyarrow.field("a", pyarrow.int64(), nullable=False)])
        for bad, kind in ((3, "needs mappings"), ({}, "no value"), ({"a": None}, "no value"), ({1: 2}, "1")):
            with pytest.raises(ValueError, match=kind) as caught:
                parallel([{"a": 1}, bad]).write_parquet(tmp_path / "a", schema=schema)
            assert "at element 1" in caught.value.__notes__[0]
        with pytest.raises(ValueError, match="str as names of columns"):
            parallel([{1: 2}]).write_parquet(tmp_path / "a")
        nested = pyarrow.schema([("a", pyarrow.list_(pyarrow.struct([("x", pyarrow.int64())])))])
        with pytest.raises(ValueError, match="column 'a'"):
            parallel([{"a": [{"x": 1}]}, {"a": [{"x": 1, "y": 2}]}]).write_parquet(
                tmp_path / "a", schema=nested
            )

    def test_rows_without_columns(self, inline: Connection, tmp_path: Path) -> None:
        for call in (lambda: parallel([{}] * 3).write_parquet(tmp_path / "a"), parallel([{}]).to_arrow):
            with pytest.raises(ValueError, match="without any column"):
                call()
        assert names(tmp_path) == []

    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_rows_without_columns_among_others(self, place: Connection, tmp_path: Path, size: int) -> None:
        """They are rows of nulls, also where a partition has no others."""
        given: list[dict[str, Any]] = [{}, {"a": 1}, {}, {}, {}, {"b": "x"}, {}]
        expected = [{"a": row.get("a"), "b": row.get("b")} for row in given]
        chain = parallel(given, partition_size=size)
        assert chain.to_arrow().to_pylist() == expected
        written = chain.write_parquet(tmp_path / "a.parquet")
        assert parquet.read_table(written.files).to_pylist() == expected
        assert written.rows == len(given)
        some = parallel(given[1:5], partition_size=size).write_parquet(tmp_path / "b-*", rows_per_file=2)
        found = [row for file in some.files for row in parquet.read_table(file).to_pylist()]
        assert found == [{"a": 1}, {"a": None}, {"a": None}, {"a": None}]

    @pytest.mark.parametrize(
        "values",
        [
            [Decimal("1"), Decimal("1.50"), Decimal(10**20)],
            [np.datetime64("2020-01-01T01:00:00", "s"), np.datetime64("2020-01-01T01:00:00.000000001", "ns")],
            [[1], [Decimal("1.5")]],
        ],
    )
    def test_the_first_file_has_the_types_of_its_own_rows(
        self, inline: Connection, tmp_path: Path, values: list[Any]
    ) -> None:
        """Also where values of one type of Python's have columns of several of pyarrow's."""
        if isinstance(values[0], np.datetime64):
            pytest.importorskip("pandas")  # which shows nanoseconds; without it, pyarrow's error says so
        for size in (1, 2, 100):
            with pytest.raises(ValueError, match=r"row 1 has .* in column 'a'|row 2 has .* in column 'a'"):
                parallel([{"a": value} for value in values], partition_size=size).write_parquet(
                    tmp_path / "out-*", rows_per_file=1
                )
        assert names(tmp_path) == []

    def test_a_column_for_which_parquet_has_no_type(self, inline: Connection, tmp_path: Path) -> None:
        for end, limits in (("a", {}), ("a-*", {"rows_per_file": 1})):
            with pytest.raises(
                ValueError, match=r"write_parquet\(\): column 'x' is .*: leave it out, or make"
            ):
                parallel([{"n": 1, "x": {}}]).write_parquet(tmp_path / end, **limits)
        assert names(tmp_path) == []

    def test_arguments(self, inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(TypeError, match=r"pyarrow\.Schema"):
            parallel([{}]).write_parquet(tmp_path / "a", schema={"a": "int"})
        for names in ([], ["a", "a"]):  # no row of such a table is a dict
            with pytest.raises(ValueError, match="columns with names of their own, one at least"):
                parallel([{}]).to_arrow(pyarrow.schema([(name, pyarrow.int64()) for name in names]))
        with pytest.raises(ValueError, match="cannot be encoded") as caught:
            parallel([{"a": 1}, {"\ud800": 1}]).write_parquet(tmp_path / "a")
        assert "at element 1" in str(caught.value.__notes__)
        with pytest.raises(ValueError, match="'rar'"):
            parallel([{}]).write_parquet(tmp_path / "a", compression="rar")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        monkeypatch.setitem(sys.modules, "pandas", None)
        for call in (lambda: parallel([{}]).write_parquet(tmp_path / "a"), parallel([{}]).to_arrow):
            with pytest.raises(ModuleNotFoundError, match="needs pyarrow"):
                call()
        with pytest.raises(ModuleNotFoundError, match=r"to_pandas\(\) needs pandas"):
            parallel([{}]).to_pandas()


class TestInMemory:
    """Tables in this process."""

    def test_of_arrow(self, cluster: Connection) -> None:
        assert rows().to_arrow().to_pylist() == ROWS
        schema = pyarrow.schema([("a", pyarrow.int8())])
        assert parallel([{"a": 1}, {}]).to_arrow(schema).equals(pyarrow.table({"a": [1, None]}, schema))
        assert parallel([]).to_arrow(schema).schema == schema
        assert parallel([]).to_arrow().num_rows == 0

    @pytest.mark.parametrize("size", [1, 2])
    @pytest.mark.parametrize("others", [({"a": None}, {"a": "x"}), ({}, {"b": 1}), ({"a": 1}, {"a": 2.5})])
    def test_the_column_without_a_type_is_named(
        self, inline: Connection, others: tuple[dict[str, Any], ...], size: int
    ) -> None:
        rows = [other | {"it": value} for other, value in zip(others, ("x", 1), strict=True)]
        with pytest.raises(ValueError, match="1 in column 'it'"):
            parallel(rows, partition_size=size).to_arrow()

    @pytest.mark.parametrize("size", [1, 2, 100])
    @pytest.mark.parametrize(
        "given",
        [
            ROWS[:20],
            [{"a": 1}, {"a": None}, {"a": 3}],
            [{"a": None}, {"a": None}, {"a": True}],
            [{"a": 1}, {"b": "x"}, {"a": 2.5, "c": datetime(2020, 1, 1)}],
            [{"a": 1}, {"a": "x"}, {"a": 2}],
            [{"a": 1}, {}, {"a": 2}],
            [{}, {}],
            [],
            [{1: 1, "1": 2}],
            [{None: 1 + 2j, "b": "x"}, {"b": "y"}, {None: 3j}],
            [{None: 3}, {None: 4, "b": "x"}, {"c": "y"}],
        ],
    )
    def test_of_pandas(self, inline: Connection, given: list[dict[Any, Any]], size: int) -> None:
        pandas = pytest.importorskip("pandas")
        found = parallel(given, partition_size=size).to_pandas()
        pandas.testing.assert_frame_equal(found, pandas.DataFrame(given))

    @pytest.mark.parametrize("size", [1, 2, 100])
    @pytest.mark.parametrize(
        "values",
        [
            [2**60 + 1, None, "x"],  # which alone are floats, and would lose the last digit
            [2**60 + 1, None, 2**70],
            [1.5, None, "x"],
            ["x", None, 1],
            [NOON, NOON, "x"],
            [NOON, None, NOON.replace(tzinfo=UTC)],
            [NOON.replace(tzinfo=UTC), 1, None],
            [timedelta(1), None, 3],
            [timedelta(1), timedelta(2), "x"],
            [np.float32(1.1), np.float32(2), "x"],
            [np.int8(1), None, "x"],
        ],
    )
    def test_values_of_pandas_are_what_they_were(
        self, inline: Connection, values: list[Any], size: int
    ) -> None:
        pandas = pytest.importorskip("pandas")
        rows = [{"a": value} for value in values]
        found = parallel(rows, partition_size=size).to_pandas()["a"]
        assert list(map(repr, found.tolist())) == list(map(repr, pandas.DataFrame(rows)["a"].tolist()))

    def test_of_pandas_on_a_cluster(self, cluster: Connection) -> None:
        pandas = pytest.importorskip("pandas")
        pandas.testing.assert_frame_equal(rows().to_pandas(), pandas.DataFrame(ROWS))
        with pytest.raises(ValueError, match="needs mappings") as caught:
            parallel([{"a": 1}, 7]).to_pandas()
        assert "element 1: 7" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "values",
    [
        [NOON, NOON.replace(tzinfo=UTC)],
        [NOON.replace(tzinfo=UTC), NOON],
        [{"x": [NOON]}, {"x": [NOON.replace(tzinfo=EAST)]}],
        [NOON.replace(tzinfo=EAST), NOON.replace(tzinfo=UTC), None],
        [[NOON.replace(tzinfo=UTC)], [NOON.replace(tzinfo=EAST)]],
        [Decimal("1.5"), np.int8(3)],
        [NOON, np.datetime64("2020-01-01T01:00:00", "s")],
        [True, np.uint64(2**63)],
        [np.uint64(2**63), "text"],
        [None, *(np.datetime64("2020-01-01T01:00:00", unit) for unit in ("s", "ns", "ms", "us"))],
        [np.timedelta64(1, "us"), timedelta(seconds=1), np.timedelta64(10**12, "s")],
        [[np.datetime64("2020-01-01", "s")], [NOON], [], None, (np.datetime64("2020-01-01", "ms"),)],
        [{"x": np.timedelta64(1, "s")}, {"y": 1}, None, {"x": np.timedelta64(1, "us"), "y": Decimal("1.5")}],
        [1, Decimal("1.5"), np.uint8(200), Decimal("0.0001")],
        [[1], [Decimal("1.55")], [None, 2]],
        [date(2020, 1, 1), NOON],
        [[b"bytes"], ["text"]],
        [{"x": [{"y": 1}]}, {"x": [{"y": 2.5, "z": [date(2020, 1, 1)]}, {}]}],
    ],
)
def test_types_do_not_depend_on_which_rows_came_together(
    inline: Connection, monkeypatch: pytest.MonkeyPatch, values: list[Any]
) -> None:
    found = []
    for size, together in ((1, 256), (2, 256), (100, 256), (100, 1)):
        monkeypatch.setattr("parcoll.output.arrow.TOGETHER", together)
        try:
            table = parallel([{"a": value} for value in values], partition_size=size).to_arrow()
            found.append((str(table.schema), table.to_pylist()))
        except ValueError as error:
            found.append(("", ["in column 'a'" in str(error)]))
    assert found[0] == found[1] == found[2] == found[3]
    zones = {value.tzinfo for value in values if isinstance(value, datetime)}
    if zones == {UTC, EAST}:
        assert "tz=+02:00" in found[0][0]
        assert [row["a"] for row in found[0][1]] == values
    elif UTC in zones:
        assert found[0][1] == [True]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_nanoseconds_that_were_read_can_be_written(inline: Connection, tmp_path: Path, size: int) -> None:
    """They are times of pandas', which pyarrow takes for microseconds."""
    pytest.importorskip("pandas")
    moments = [10**18, None, 10**18 + 1]
    kinds = {"a": pyarrow.timestamp("ns"), "b": pyarrow.timestamp("ns", "UTC"), "c": pyarrow.duration("ns")}
    table = pyarrow.table({name: pyarrow.array(moments, kind) for name, kind in kinds.items()})
    parquet.write_table(table, tmp_path / "in.parquet")
    rows = parallel([*read_parquet(tmp_path / "in.parquet")], partition_size=size)
    assert parquet.read_table(rows.write_parquet(tmp_path / "out.parquet").files).equals(table)
    assert (
        rows.map(lambda row: {"x": [row["a"], NOON]}).to_arrow().schema.field(0).type.value_type == kinds["a"]
    )


def test_columns_are_those_of_pyarrow() -> None:
    """Also where pyarrow does not make them."""
    some = random.Random(1)
    kinds: list[tuple[Any, ...]] = [
        (0, -1, 2**63 - 1, -(2**63)),
        (1.5, math.inf, -0.0),
        ("", "a", "é", "\U0001d11e\0"),
        (b"", b"x\0"),
        (True, False),
    ]
    for _ in range(300):
        choices = (*some.choice(kinds), *[None] * some.choice([0, 0, 2, 99]))
        values: list[Any] = some.choices(choices, k=some.randrange(20))
        if some.random() < 0.6:
            values = [some.choice([None, [], values[:3], values[2:4]]) for _ in values]
        column, expected = inferred(pyarrow, values), pyarrow.array(values)
        column.validate(full=True)
        assert column.type == expected.type
        assert column.equals(expected)
        assert column.null_count == expected.null_count
    for odd in ([2**63], [-1, True], ["\ud800"], [[1], [2.5]], [[["a"], None]], [()]):
        assert plain_column(pyarrow, set(map(type, odd)), odd) is None or odd == [[["a"], None]]
