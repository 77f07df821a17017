"""`write_text`, `write_jsonl`, `write_csv`: what is in which files, and what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
import time
from collections import namedtuple
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pytest

from parcoll import Connection, ElementTimeoutError, ParallelGen, WorkerLostError, Written, parallel


def record(x: int) -> dict[str, Any]:
    """Make a row."""
    return {"x": x, "text": "é," * (x % 4), "half": x / 2}


ROWS = [record(x) for x in range(1000)]


def rows(**options: Any) -> ParallelGen[dict[str, Any]]:
    """Return the rows as a collection."""
    return parallel(range(1000), **options).map(record)


def names(folder: Path) -> list[str]:
    """Return all that is in a folder."""
    return sorted(os.listdir(folder))


def as_csv(rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    """Return what `csv.DictWriter` writes."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


class TestOneFile:
    """A path without a star."""

    def test_lines_of_json_are_those_of_json_dumps(self, cluster: Connection, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        written = rows().write_jsonl(path)
        assert path.read_text() == "".join(json.dumps(row) + "\n" for row in ROWS)
        assert written == Written([str(path)], 1000, path.stat().st_size)
        assert names(tmp_path) == ["out.jsonl"]

    def test_texts_have_their_end(self, cluster: Connection, tmp_path: Path) -> None:
        parallel(range(500)).map(str).write_text(tmp_path / "out.txt")
        assert (tmp_path / "out.txt").read_text() == "".join(f"{x}\n" for x in range(500))
        parallel(["a", "", "b\n"]).write_text(tmp_path / "none.txt", end="")
        assert (tmp_path / "none.txt").read_text() == "ab\n"

    def test_csv_is_that_of_a_dict_writer(self, cluster: Connection, tmp_path: Path) -> None:
        rows().write_csv(tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == as_csv(ROWS, ["x", "text", "half"])

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32", "latin-1", "iso2022_jp", "utf-7"])
    def test_a_mark_of_the_byte_order_comes_once(
        self, inline: Connection, tmp_path: Path, encoding: str
    ) -> None:
        texts = ["a", "~b" if encoding == "iso2022_jp" else "é", ""]
        path = tmp_path / "out.txt"
        parallel(texts, partition_size=1).write_text(path, encoding=encoding)
        assert path.read_bytes().decode(encoding) == "".join(text + "\n" for text in texts)

    @pytest.mark.parametrize(
        ("ending", "read"),
        [
            *(("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open), ("JSONL.GZ", gzip.open)),
            ("lzma", lzma.open),
        ],
    )
    def test_it_is_compressed_by_its_name(
        self, inline: Connection, tmp_path: Path, ending: str, read: Callable[[Path], Any]
    ) -> None:
        path = tmp_path / f"out.{ending}"
        rows().write_jsonl(path)
        with read(path) as file:
            assert [json.loads(line) for line in file] == ROWS

    def test_compression_may_be_told(self, inline: Connection, tmp_path: Path) -> None:
        rows().write_jsonl(tmp_path / "a.gz", compression=None)
        rows().write_jsonl(tmp_path / "b", compression="gzip")
        assert (tmp_path / "a.gz").read_bytes() == gzip.decompress((tmp_path / "b").read_bytes())

    def test_nothing_is_an_empty_file(self, inline: Connection, tmp_path: Path) -> None:
        none = parallel([])
        assert none.write_jsonl(tmp_path / "a.jsonl") == Written([str(tmp_path / "a.jsonl")], 0, 0)
        assert none.write_text(tmp_path / "a-*.txt").files == [str(tmp_path / "a-00000.txt")]
        none.write_csv(tmp_path / "a.csv", columns=["a", "b"])
        none.write_csv(tmp_path / "b.csv")
        none.write_text(tmp_path / "a.txt.gz")
        assert (
            (tmp_path / "a.jsonl").read_bytes()
            == b""
            == gzip.decompress((tmp_path / "a.txt.gz").read_bytes())
        )
        assert [(tmp_path / name).read_bytes() for name in ("a.csv", "b.csv")] == [b"a,b\r\n", b""]

    def test_rows_of_an_unordered_chain_are_all_there(self, cluster: Connection, tmp_path: Path) -> None:
        written = rows().unordered().write_jsonl(tmp_path / "out.jsonl")
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert sorted(found, key=lambda row: row["x"]) == ROWS
        assert written.rows == 1000

    def test_what_batches_and_what_is_kept_is_written(self, cluster: Connection, tmp_path: Path) -> None:
        parallel(range(7)).batched(3).write_jsonl(tmp_path / "a")
        assert (tmp_path / "a").read_text() == "[0, 1, 2]\n[3, 4, 5]\n[6]\n"
        kept = parallel(range(3)).map(str).persist()
        kept.write_text(tmp_path / "b")
        assert (tmp_path / "b").read_text() == "0\n1\n2\n"


class TestSeveralFiles:
    """A path with a star."""

    def test_rows_of_each_file(self, cluster: Connection, tmp_path: Path) -> None:
        written = rows().write_jsonl(tmp_path / "out" / "part-*.jsonl", rows_per_file=300)
        found = [Path(file).read_text().splitlines() for file in written.files]
        assert [len(lines) for lines in found] == [300, 300, 300, 100]
        assert [json.loads(line) for lines in found for line in lines] == ROWS
        assert names(tmp_path / "out") == [f"part-{n:05d}.jsonl" for n in range(4)]
        assert written.files == [str(tmp_path / "out" / name) for name in names(tmp_path / "out")]

    def test_a_file_ends_with_the_row_that_fills_it(self, inline: Connection, tmp_path: Path) -> None:
        path = tmp_path / "part-*.txt"
        written = parallel(range(100)).map(lambda x: "x" * x).write_text(path, bytes_per_file="1 kB")
        sizes = [Path(file).stat().st_size for file in written.files]
        lines = [Path(file).read_text().splitlines() for file in written.files]
        assert [line for found in lines for line in found] == ["x" * n for n in range(100)]
        for size, found in zip(sizes[:-1], lines, strict=False):
            assert size >= 1000 > size - len(found[-1]) - 1

    @pytest.mark.parametrize("how", [{"rows_per_file": 7}, {"bytes_per_file": 999}])
    @pytest.mark.parametrize("ending", ["jsonl", "csv.gz"])
    def test_they_do_not_depend_on_partitions(
        self, inline: Connection, tmp_path: Path, how: dict[str, Any], ending: str
    ) -> None:
        found = []
        for size in (9, 13, 1000):
            path = tmp_path / str(size) / f"part-*.{ending}"
            chain = rows(partition_size=size)
            written = (chain.write_csv if "csv" in ending else chain.write_jsonl)(path, **how)
            found.append([Path(file).read_bytes() for file in written.files])
        assert found[0] == found[1] == found[2]
        assert len(found[0]) > 9

    def test_each_has_a_header(self, inline: Connection, tmp_path: Path) -> None:
        written = parallel([{"a": 1}] * 3).write_csv(tmp_path / "*.csv", rows_per_file=2)
        assert [Path(file).read_bytes() for file in written.files] == [b"a\r\n1\r\n1\r\n", b"a\r\n1\r\n"]

    def test_none_is_begun_for_no_rows(self, inline: Connection, tmp_path: Path) -> None:
        assert len(parallel(range(6)).write_jsonl(tmp_path / "*", rows_per_file=3).files) == 2

    def test_fewer_files_leave_none_of_the_run_before(self, inline: Connection, tmp_path: Path) -> None:
        path, other = tmp_path / "part-*.jsonl", tmp_path / "part-x.jsonl"
        other.write_text("another's")
        rows().write_jsonl(path, rows_per_file=100)
        parallel(["new"]).write_jsonl(path, overwrite=True)
        assert names(tmp_path) == ["part-00000.jsonl", "part-x.jsonl"]
        assert (tmp_path / "part-00000.jsonl").read_text() == '"new"\n'


class TestColumns:
    """Rows of csv that differ."""

    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_what_a_row_lacks_is_empty(self, inline: Connection, tmp_path: Path, size: int) -> None:
        given = [{"a": 1, "b": "x,y", "c": None}, {"b": 2}, {"c": "\r\n", "a": ' "q"'}, {}, {"b": ""}]
        parallel(given, partition_size=size).write_csv(tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == as_csv(given, ["a", "b", "c"])

    @pytest.mark.parametrize("size", [1, 3, 100])
    def test_a_single_column_may_be_empty(self, inline: Connection, tmp_path: Path, size: int) -> None:
        given: list[dict[str, Any]] = [{"a": None}, {}, {"a": ""}, {"a": "x" * 200_000}]
        parallel(given, partition_size=size).write_csv(tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == as_csv(given, ["a"])

    @pytest.mark.parametrize("size", [1, 4, 100])
    def test_a_later_one_is_refused(self, inline: Connection, tmp_path: Path, size: int) -> None:
        given: list[dict[str, Any]] = [{"a": 1}] * 5 + [{"a": 2, "new": 3}] + [{"a": 1}] * 5
        with pytest.raises(ValueError, match=r"element 5: \{'a': 2, 'new': 3\}.*column 'new'.*only 'a'"):
            parallel(given, partition_size=size).write_csv(tmp_path / "out.csv")
        assert names(tmp_path) == []

    def test_given_ones_have_their_order(self, cluster: Connection, tmp_path: Path) -> None:
        given = [{"b": 1, "a": 2}, {"a": 3}]
        parallel(given).write_csv(tmp_path / "out.csv", columns=["a", "b"])
        assert (tmp_path / "out.csv").read_bytes() == as_csv(given, ["a", "b"])
        with pytest.raises(ValueError, match=r"column 'b', which is not in columns=\['a'\]") as caught:
            parallel([{"a": 1}, *given]).write_csv(tmp_path / "no.csv", columns=["a"])
        assert caught.value.__notes__[0] == "in write_csv, at element 1: {'a': 2, 'b': 1}"

    def test_lists_need_them(self, inline: Connection, tmp_path: Path) -> None:
        point = namedtuple("point", "x y")
        parallel([[1, 2], (3, None), point(5, 6)]).write_csv(
            tmp_path / "out.csv", columns=["x", "y"], header=False
        )
        assert (tmp_path / "out.csv").read_bytes() == b"1,2\r\n3,\r\n5,6\r\n"
        with pytest.raises(TypeError, match="needs columns= for rows that are lists"):
            parallel([[1, 2]]).write_csv(tmp_path / "no.csv")
        with pytest.raises(ValueError, match="a row has 1 value for 2 columns"):
            parallel([[1]]).write_csv(tmp_path / "no.csv", columns=["a", "b"])
        for columns in ([], ["a", "a"], ["a", "\ud800"]):
            with pytest.raises(ValueError, match="column"):
                parallel([{}]).write_csv(tmp_path / "no.csv", columns=columns)
        with pytest.raises(TypeError, match=r"needs names as columns, got \['a'\]"):
            parallel([{}]).write_csv(tmp_path / "no.csv", columns=[["a"]])  # type: ignore[list-item]
        with pytest.raises(UnicodeEncodeError) as unholdable:
            parallel([{"a": 1}, {"a": 1, "\ud800": 2}]).write_csv(tmp_path / "no.csv")
        assert "at element 1" in str(unholdable.value.__notes__)


class TestWhatCannotBeWritten:
    """Elements that fail: nothing is written, and the element is named."""

    @pytest.mark.parametrize("method", ["write_text", "write_csv"])
    def test_texts_that_the_encoding_cannot_hold(
        self, cluster: Connection, tmp_path: Path, method: str
    ) -> None:
        texts: list[Any] = ["a"] * 50 + ["\ud800"] + ["a"] * 50
        given = texts if method == "write_text" else [{"t": text} for text in texts]
        with pytest.raises(UnicodeEncodeError) as caught:
            getattr(parallel(given, on_error="skip"), method)(tmp_path / "out")
        assert "at element 50: " in caught.value.__notes__[0]
        assert method in caught.value.__notes__[0]
        assert names(tmp_path) == []

    def test_a_surrogate_is_escaped_in_json(self, inline: Connection, tmp_path: Path) -> None:
        parallel(["\ud800"]).write_jsonl(tmp_path / "out")
        assert json.loads((tmp_path / "out").read_text()) == "\ud800"

    def test_what_json_does_not_know(self, cluster: Connection, tmp_path: Path) -> None:
        given = [1, date(2020, 1, 2), {"d": date(2021, 1, 1)}]
        with pytest.raises(TypeError, match="not JSON serializable") as caught:
            parallel(given).write_jsonl(tmp_path / "out")
        assert caught.value.__notes__[0].startswith("in write_jsonl, at element 1: datetime.date")
        here = os.getpid()
        parallel(given).write_jsonl(tmp_path / "out", default=lambda day: [str(day), os.getpid() == here])
        found = (tmp_path / "out").read_text()
        assert found == '1\n["2020-01-02", false]\n{"d": ["2021-01-01", false]}\n'
        with pytest.raises(ZeroDivisionError) as caught_too:
            parallel(given).write_jsonl(tmp_path / "no", default=lambda day: 1 / 0)
        assert "at element 1: " in caught_too.value.__notes__[0]

    def test_what_json_knows_since_the_program_has_put_it_there(
        self, cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(json.JSONEncoder, "default", lambda self, value: str(value))
        parallel([1, date(2020, 1, 2)]).write_jsonl(tmp_path / "out")
        assert (tmp_path / "out").read_text() == '1\n"2020-01-02"\n'

    def test_not_a_number_is_as_json_dumps_has_it(self, inline: Connection, tmp_path: Path) -> None:
        odd = {1: (2.5, "\x00\u2028é"), None: {True: -0.0}, 1e300: [[], {}, 10**40]}
        parallel([odd, 1.5, "x", None]).write_jsonl(tmp_path / "odd")
        assert (tmp_path / "odd").read_text() == json.dumps(odd) + '\n1.5\n"x"\nnull\n'
        parallel([math.nan, -math.inf]).write_jsonl(tmp_path / "out")
        assert (tmp_path / "out").read_text() == "NaN\n-Infinity\n"

    def test_a_function_of_the_chain(self, cluster: Connection, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            parallel(range(99)).map(lambda x: 1 / (x - 70)).write_jsonl(tmp_path / "new" / "out-*")
        assert "at element 70: 70" in caught.value.__notes__[0]
        assert names(tmp_path) == []
        skipping = parallel(range(9), on_error="skip").map(lambda x: 1 // (x - 7))
        assert skipping.write_jsonl(tmp_path / "out").rows == 8
        assert len(skipping.errors) == 1

    def test_the_source(self, cluster: Connection, tmp_path: Path) -> None:
        def source() -> Any:
            yield from range(100)
            raise OSError("the source")

        with pytest.raises(OSError, match="the source"):
            parallel(source).write_jsonl(tmp_path / "out")
        assert names(tmp_path) == []

    def test_elements_behind_a_flatmap_and_beside_the_worker(
        self, cluster: Connection, tmp_path: Path
    ) -> None:
        chain = parallel(range(20), timeout=60).flatmap(lambda x: [x, {x} if x == 13 else x])
        with pytest.raises(TypeError) as caught:
            chain.write_jsonl(tmp_path / "out")
        assert ": {13}" in caught.value.__notes__[0]
        good = parallel(range(20), timeout=60).map(lambda x: {x})
        good.write_jsonl(tmp_path / "out", default=list)
        assert (tmp_path / "out").read_text() == "".join(f"[{x}]\n" for x in range(20))
        for deadly, kind in ((lambda _: os._exit(3), WorkerLostError), (time.sleep, ElementTimeoutError)):
            bad = parallel([1, deadly], timeout=0.5).write_jsonl
            with pytest.raises(kind, match="write_jsonl, calling default="):
                bad(tmp_path / "no", default=lambda func: func(60))
        assert names(tmp_path) == ["out"]


class TestBeside:
    """What an evaluation has beside its results."""

    def test_stats(self, cluster: Connection, tmp_path: Path) -> None:
        chain = rows()
        written = chain.write_jsonl(tmp_path / "out")
        stats = chain.stats
        assert stats is not None
        assert (stats.fold, stats.elements_out, stats.state) == ("write_jsonl", 1000, "ended")
        assert stats.written is not None
        assert (stats.written.rows, stats.written.bytes) == (1000, written.bytes)
        assert stats.fold_seconds > 0 < stats.written.seconds
        assert "write_jsonl " in str(stats)
        assert "1,000 rows written" in str(stats)

    def test_only_hidden_names_before_the_end(self, inline: Connection, tmp_path: Path) -> None:
        seen: list[list[str]] = []

        def source() -> Any:
            for x in range(20):
                seen.append(names(tmp_path))
                yield x

        parallel(source, partition_size=1).write_jsonl(tmp_path / "out-*", rows_per_file=2)
        assert {name.startswith(".parcoll-") for found in seen for name in found} == {True}
        assert len(names(tmp_path)) == 10

    def test_ctrl_c_leaves_nothing(self, cluster: Connection, tmp_path: Path) -> None:
        def source() -> Any:
            yield from range(100)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            parallel(source).write_jsonl(tmp_path / "new" / "out")
        assert names(tmp_path) == []

    def test_a_run_that_resumes_writes_the_same_bytes(self, cluster: Connection, tmp_path: Path) -> None:
        folder, stop = tmp_path / "checkpoint", tmp_path / "stop"

        def made(x: int) -> dict[str, Any]:
            if x == 800 and stop.exists():
                raise RuntimeError("stop")
            return record(x)

        path, how = tmp_path / "p-*.csv.gz", {"rows_per_file": 150}
        parallel(range(1000)).map(made).write_csv(path, **how)
        expected = [file.read_bytes() for file in sorted(tmp_path.glob("p-*"))]
        stop.touch()
        chain = parallel(range(1000), checkpoint=str(folder)).map(made)
        with pytest.raises(RuntimeError, match="stop"):
            chain.write_csv(path, overwrite=True, **how)
        stop.unlink()
        assert chain.write_csv(path, overwrite=True, **how).rows == 1000
        assert chain.stats is not None
        assert chain.stats.resumed > 0
        assert [file.read_bytes() for file in sorted(tmp_path.glob("p-*"))] == expected
        with pytest.raises(TypeError) as caught:
            parallel(range(9), checkpoint=str(tmp_path / "c")).map(lambda x: {x}).write_jsonl(tmp_path / "x")
        assert caught.value.__notes__[0] == "in write_jsonl, at element 0: {0}"


class TestElsewhere:
    """URLs."""

    def test_objects_in_memory(self, cluster: Connection) -> None:
        memory = fsspec.filesystem("memory")
        written = rows().write_jsonl("memory://one/out.jsonl")
        assert written == Written(["memory://one/out.jsonl"], 1000, memory.size("/one/out.jsonl"))
        with pytest.raises(FileExistsError):
            rows().write_jsonl("memory://one/out.jsonl")
        parallel([7]).write_jsonl("memory://one/out.jsonl", overwrite=True)
        assert memory.cat("/one/out.jsonl") == b"7\n"
        rows().write_jsonl("memory://one/p-*.jsonl.gz", rows_per_file=400)
        parallel([1]).write_jsonl("memory://one/p-*.jsonl.gz", overwrite=True)
        assert sorted(memory.ls("/one", detail=False)) == [
            *("/one/_p-manifest.jsonl.gz.json", "/one/out.jsonl", "/one/p-00000.jsonl.gz")
        ]
        listed = json.loads(memory.cat("/one/_p-manifest.jsonl.gz.json"))
        assert [file["name"] for file in listed["files"]] == ["p-00000.jsonl.gz"]
        with pytest.raises(ZeroDivisionError):
            parallel([1]).map(lambda x: x / 0).write_jsonl("memory://two/out")
        assert not memory.exists("/two")
        memory.rm("/one", recursive=True)

    @pytest.mark.parametrize("old", [False, True])
    def test_a_put_that_fails_or_dies(
        self, inline: Connection, monkeypatch: pytest.MonkeyPatch, old: bool
    ) -> None:
        memory, path = fsspec.filesystem("memory"), "memory://three/p-*"

        def found() -> list[bytes]:
            return [memory.cat(name) for name in sorted(memory.glob("/three/p-*"))]

        if old:
            parallel(["old"] * 3).write_text(path, rows_per_file=1)
        before = found()
        puts = memory.pipe_file
        for dies in (False, True):

            def put(name: str, content: bytes, dies: bool = dies, **options: Any) -> None:
                if "p-00002" in name:
                    raise (KeyboardInterrupt if dies else OSError)("no more")
                puts(name, content, **options)

            with monkeypatch.context() as patch:
                patch.setattr(memory, "pipe_file", put)
                if dies:  # and cannot tidy up
                    patch.setattr(memory, "rm_file", lambda name: None)
                    patch.setattr("parcoll.output.staging._started", lambda pid: "1")
                with pytest.raises(KeyboardInterrupt if dies else OSError):
                    parallel(["new"] * 4).write_text(path, rows_per_file=1, overwrite=True)
            if not dies or old:
                assert found() == before
        parallel(["new"] * 4).write_text(path, rows_per_file=1, overwrite=old)
        assert found() == [b"new\n"] * 4
        assert len(memory.ls("/three")) == 5
        memory.rm("/three", recursive=True)
