"""`read_text`: the lines that `open` gives, in order, however the files are cut and wherever they are."""

from __future__ import annotations

import gzip
import io
import os
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcoll import (
    Connection,
    ParallelGen,
    connect,
    parallel,
    read_archive,
    read_files,
    read_parquet,
    read_text,
)
from parcoll.files import texts
from parcoll.front import formats

# One to four bytes a character, all kinds of line ends, an empty line, none at the end.
MIXED = "ä\r\nßßß\n\n漢字 and\r\n\U0001f600\U0001f600 x\nlast é"


def builtin_lines(text: str, newline: str | None = None) -> list[str]:
    """Return the lines that `open` would give."""
    return list(io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline=newline))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with three files of two lines each, and one that is none of ours."""
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    (tmp_path / "other.csv").write_text("not this\n")
    return tmp_path


THREE = [f"{name} {number}\n" for name in "abc" for number in ("one", "two")]


# Which files --------------------------------------------------------------------------------------


def test_a_glob_gives_its_files_by_name(folder: Path, cluster: Connection) -> None:
    assert list(read_text(f"{folder}/*.txt")) == THREE
    assert list(read_text(folder / "*.txt").map(str.upper)) == [line.upper() for line in THREE]


def test_a_list_gives_its_files_in_its_own_order(folder: Path, cluster: Connection) -> None:
    paths = [folder / "c.txt", str(folder / "a.txt")]
    assert list(read_text(paths)) == THREE[4:] + THREE[:2]
    assert list(read_text(tuple(paths), files_per_partition=5)) == THREE[4:] + THREE[:2]


def test_a_file_that_is_named_twice_is_read_twice(folder: Path, cluster: Connection) -> None:
    twice = read_text([folder / "a.txt", folder / "a.txt"])
    assert list(twice) == THREE[:2] * 2
    assert twice.count() == 4


def test_a_url_of_fsspec_is_read(folder: Path, cluster: Connection) -> None:
    assert list(read_text(f"file://{folder}/*.txt")) == THREE


def test_files_in_memory_are_read_in_this_process(inline: Connection) -> None:
    name = uuid.uuid4().hex
    for part in ("x", "y"):
        with fsspec.open(f"memory://{name}/{part}.txt", "w", encoding="utf-8") as file:
            file.write(f"{part} {MIXED}")
    expected = [line for part in "xy" for line in builtin_lines(f"{part} {MIXED}")]
    assert list(read_text(f"memory://{name}/*.txt")) == expected
    assert list(read_text(f"memory://{name}/*.txt", blocksize=7)) == expected


def test_storage_options_reach_the_filesystem(folder: Path, inline: Connection) -> None:
    """This one shows what is in an archive."""
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for name in "abc":
            archive.write(folder / f"{name}.txt", f"{name}.txt")
    options = {"fo": str(folder / "all.zip")}
    assert list(read_text("zip://*.txt", storage_options=options)) == THREE
    assert list(read_text("zip://*.txt", storage_options=options, blocksize=4)) == THREE


def test_relative_paths_are_those_of_this_process(
    folder: Path, cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    lines = read_text("*.txt")
    monkeypatch.chdir("/")
    assert list(lines) == THREE


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_files_share_a_partition(folder: Path, cluster: Connection, size: int) -> None:
    lines = read_text(f"{folder}/*.txt", files_per_partition=size)
    assert lines.bag.npartitions == -(-3 // size)
    assert list(lines) == THREE
    assert list(lines) == THREE, "a second evaluation reads again"


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])
def test_compressed_files_are_known_by_their_names(tmp_path: Path, cluster: Connection, suffix: str) -> None:
    path = f"{tmp_path}/file.txt.{suffix}"
    with fsspec.open(path, "wt", compression="infer", encoding="utf-8", newline="") as file:
        file.write(MIXED)
    assert not Path(path).read_bytes().startswith(MIXED[:1].encode())
    assert list(read_text(path)) == builtin_lines(MIXED)


def test_compression_may_be_named(tmp_path: Path, inline: Connection) -> None:
    (tmp_path / "plain.gz").write_text("a\nb")
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"c\nd"))
    assert list(read_text(tmp_path / "plain.gz", compression=None)) == ["a\n", "b"]
    assert list(read_text(tmp_path / "packed.txt", compression="gzip")) == ["c\n", "d"]


# Which lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [MIXED, MIXED + "\n", MIXED + "\r\n", "\n", "\r\n\r\n", "no end", "a\n" * 9])
def test_blocks_of_every_size_give_each_line_once(tmp_path: Path, inline: Connection, text: str) -> None:
    """A cut may fall within a character, within `\\r\\n`, on a line end; a line may span many blocks."""
    path = tmp_path / "file.txt"
    path.write_bytes(text.encode())
    expected = builtin_lines(text)
    assert list(read_text(path)) == expected
    for size in range(1, len(text.encode()) + 2):
        assert list(read_text(path, blocksize=size)) == expected, size


LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r", "", "|", "||"])
TEXTS = st.lists(st.tuples(st.text("aé漢\U0001f600 |", max_size=5), LINE_ENDS), max_size=12).map(
    lambda parts: "".join(text + end for text, end in parts)
)


@settings(max_examples=80, deadline=None)
@given(first=TEXTS, second=TEXTS, size=st.integers(1, 40))
def test_any_text_in_blocks_of_any_size(first: str, second: str, size: int) -> None:
    name = uuid.uuid4().hex
    for number, text in enumerate((first, second)):
        with fsspec.open(f"memory://{name}/{number}", "wb") as file:
            file.write(text.encode())
    urlpath = f"memory://{name}/*"
    with connect("inline"):
        assert list(read_text(urlpath, blocksize=size)) == builtin_lines(first) + builtin_lines(second)
        for newline in ("\n", "\r", "\r\n", ""):
            expected = builtin_lines(first, newline) + builtin_lines(second, newline)
            assert list(read_text(urlpath, linedelimiter=newline)) == expected
        split = split_at("|", first) + split_at("|", second)
        assert list(read_text(urlpath, linedelimiter="|")) == split
        assert list(read_text(urlpath, linedelimiter="|", blocksize=size)) == split
        assert list(read_text(urlpath, linedelimiter="|", files_per_partition=2)) == split


def split_at(delimiter: str, text: str) -> list[str]:
    """Return what stands between delimiters, with them; nothing behind one that ends the text."""
    *ended, last = text.split(delimiter)
    return [part + delimiter for part in ended] + [last] * bool(last)


@pytest.mark.parametrize("blocksize", [None, 1, 5, "16 B"])
def test_a_delimiter_of_several_characters(
    tmp_path: Path, inline: Connection, blocksize: int | str | None
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("one\nstill one<end>two<end><end>four<en", newline="")
    expected = ["one\nstill one<end>", "two<end>", "<end>", "four<en"]
    assert list(read_text(path, linedelimiter="<end>", blocksize=blocksize)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("end", ["\n\n", "aba"])
def test_a_delimiter_that_may_begin_within_itself(
    tmp_path: Path, inline: Connection, encoding: str, end: str
) -> None:
    """Of three line ends, the first two are the delimiter: also where what is read at once ends there."""
    text = "".join(f"{end}{end[0] * (n % 3)}{n}{end[:-1] * (n % 4)}" for n in range(30_000))
    for path, content in (("a.txt", text), ("b.txt", end[0] * 200_001)):
        (tmp_path / path).write_bytes(content.encode(encoding))
        *ended, last = content.split(end)
        lines = [line + end for line in ended] + [last] * bool(last)
        assert list(read_text(tmp_path / path, encoding=encoding, linedelimiter=end)) == lines


def test_blocks_are_read_on_the_workers_in_order(tmp_path: Path, cluster: Connection) -> None:
    path = tmp_path / "file.txt"
    path.write_text("".join(f"{number} ä\r\n" for number in range(20_000)), newline="")
    lines = read_text(path, blocksize="10 kiB")
    assert lines.bag.npartitions > 10
    numbered = lines.map(lambda line: (int(line.split()[0]), line, os.getpid()))
    results = list(numbered)
    assert [(number, line) for number, line, _ in results] == [(n, f"{n} ä\n") for n in range(20_000)]
    assert os.getpid() not in {pid for _, _, pid in results}
    assert lines.map(len).reduce(lambda total, size: total + size) == sum(len(line) for _, line, _ in results)
    assert sorted(lines.unordered()) == sorted(line for _, line, _ in results)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8-sig", "shift_jis", "gb18030"])
def test_other_encodings_can_be_cut(tmp_path: Path, inline: Connection, encoding: str) -> None:
    text = ("漢字 \n" if encoding in ("shift_jis", "gb18030") else "äé \n") * 4 + "x"
    path = tmp_path / "file.txt"
    path.write_text(text, encoding=encoding)
    for size in (None, *range(1, 30)):
        assert list(read_text(path, encoding=encoding, blocksize=size)) == text.splitlines(keepends=True)


def test_large_files_are_cut_if_they_can_be(
    tmp_path: Path, inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LARGE", 50)
    text = MIXED * 10
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_text("small\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(text.encode()))
    parts = len(text.encode()) // 50 + 1
    lines = read_text([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt.gz"])
    assert lines.bag.npartitions == parts + 2
    assert list(lines) == [*builtin_lines(text), "small\n", *builtin_lines(text)]
    for how in (
        {"files_per_partition": 1},
        {"encoding": "utf-16-le"},
        {"linedelimiter": ""},
        {"linedelimiter": "||"},
    ):
        assert read_text(tmp_path / "a.txt", **how).bag.npartitions == 1
    assert read_text(tmp_path / "no-such.txt").bag.npartitions == 1


def test_a_line_over_many_parts_is_read_by_the_one_in_which_it_begins(
    tmp_path: Path, inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a.txt", [0]
    path.write_bytes(b"x\n" + b"y" * 100_000)
    real = texts._reads

    def counted(file: Any) -> Any:
        def reading(size: int) -> bytes:
            found = real(file)(size)
            read[0] += len(found)
            return found

        return reading

    monkeypatch.setattr(texts, "_reads", counted)
    assert list(read_text(path, blocksize=1_000)) == ["x\n", "y" * 100_000]
    assert read[0] < 250_000


def test_an_encoding_that_cannot_be_cut_is_read_whole(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "file.txt"
    path.write_text(MIXED, encoding="utf-16", newline="")
    assert list(read_text(path, encoding="utf-16")) == builtin_lines(MIXED)


def test_bytes_that_are_no_text_are_an_error_or_replaced(tmp_path: Path, cluster: Connection) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"good\nb\xffd\n")
    for size in (None, 4):
        with pytest.raises(UnicodeDecodeError):
            list(read_text(path, blocksize=size))
        assert list(read_text(path, blocksize=size, errors="replace")) == ["good\n", "b\ufffdd\n"]


@pytest.mark.parametrize("blocksize", [None, 1, "1 MiB"])
def test_empty_files_have_no_lines(folder: Path, inline: Connection, blocksize: Any) -> None:
    (folder / "empty.txt").touch()
    assert list(read_text(folder / "empty.txt", blocksize=blocksize)) == []
    assert read_text(folder / "empty.txt", blocksize=blocksize).count() == 0
    assert list(read_text([folder / "empty.txt", folder / "a.txt"], blocksize=blocksize)) == THREE[:2]


# When ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"blocksize": 4}, {"files_per_partition": 2}])
def test_nothing_is_opened_before_an_evaluation(
    folder: Path, inline: Connection, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = fsspec.get_filesystem_class("file")._open

    def spy(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).name)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "_open", spy)
    lines = read_text(f"{folder}/*.txt", **options).map(str.strip).filter(None)
    _ = repr(lines), lines == lines, bool(lines), lines.bag, lines.stats
    assert opened == []
    assert lines.first() == "a one"
    assert set(opened) <= {"a.txt", "b.txt"}
    assert "a.txt" in opened


def test_the_client_opens_no_file(folder: Path, cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    here, opens = os.getpid(), fsspec.get_filesystem_class("file")._open

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() == here:
            raise AssertionError("the client opens a file")
        return opens(*args, **kwargs)  # a worker, which has what this process puts into libraries

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "_open", refuse)
    assert list(read_text(f"{folder}/*.txt", blocksize=5)) == THREE
    assert list(read_text(f"{folder}/*.txt")) == THREE


def test_lines_are_read_anew_each_time(tmp_path: Path, cluster: Connection) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old\n")
    lines = read_text(path)
    assert list(lines) == ["old\n"]
    path.write_text("new\n")
    assert list(lines) == ["new\n"]


def test_client_and_name_are_as_for_parallel(folder: Path, cluster: Connection) -> None:
    def key(_: str) -> str:
        from distributed import get_worker

        return str(get_worker().get_current_task())

    with connect("inline"):
        lines = read_text(f"{folder}/*.txt", client=cluster.engine.client, name="some lines")
        assert {text.split("-")[:2] == ["some", "lines"] for text in lines.map(key)} == {True}


# What cannot be meant -----------------------------------------------------------------------------


def check_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("options", [{}, {"blocksize": 10}, {"files_per_partition": 2}])
@pytest.mark.parametrize("make", [str, Path, lambda path: [path]])
def test_a_glob_that_matches_nothing_is_quoted(
    tmp_path: Path, options: dict[str, Any], make: Callable[[str], Any]
) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        read_text(make(f"{tmp_path}/no-such-*.txt"), **options)
    check_sentence(raised.value, "no file", f"{tmp_path}/no-such-*.txt")


@pytest.mark.parametrize("options", [{}, {"files_per_partition": 2}])
def test_a_file_that_the_workers_do_not_find_is_named(
    tmp_path: Path, cluster: Connection, options: dict[str, Any]
) -> None:
    """The client cannot know what workers see, so it is they who say so."""
    lines = read_text(tmp_path / "no-such.txt", **options)
    with pytest.raises(FileNotFoundError) as raised:
        list(lines.map(len))
    check_sentence(raised.value, str(tmp_path / "no-such.txt"))


def test_with_blocksize_a_missing_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        read_text(tmp_path / "no-such.txt", blocksize=10)
    check_sentence(raised.value, str(tmp_path / "no-such.txt"))


@pytest.mark.parametrize(
    ("urlpath", "compression"), [("*.gz", "infer"), ("x.gz", "infer"), ("*", "infer"), ("x.gz", "gzip")]
)
def test_compressed_files_are_not_cut(tmp_path: Path, urlpath: str, compression: str) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a\nb"))
    with pytest.raises(ValueError, match="cannot cut compressed files, so leave blocksize out") as raised:
        read_text(tmp_path / urlpath, blocksize=10, compression=compression)
    check_sentence(raised.value, repr(tmp_path / urlpath))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"blocksize": 10, "files_per_partition": 2}, ValueError, ["blocksize or files_per_partition"]),
        ({"blocksize": 0}, ValueError, ["blocksize must be", "got 0"]),
        ({"blocksize": -5}, ValueError, ["blocksize must be", "got -5"]),
        ({"blocksize": True}, ValueError, ["blocksize must be", "got True"]),
        ({"blocksize": 1.5}, TypeError, ["blocksize must be", "1.5 (a float)"]),
        ({"blocksize": "large"}, ValueError, ["blocksize must be", "'large'"]),
        ({"files_per_partition": 0}, ValueError, ["files_per_partition must be", "got 0"]),
        ({"files_per_partition": "2"}, TypeError, ["files_per_partition must be", "'2' (a str)"]),
        ({"encoding": "nonsense"}, LookupError, ["nonsense"]),
        ({"errors": "nonsense"}, LookupError, ["nonsense"]),
        ({"compression": "nonsense"}, ValueError, ["nonsense"]),
        ({"blocksize": 10, "linedelimiter": ""}, ValueError, ["linedelimiter", "''"]),
        ({"blocksize": 10, "linedelimiter": "\r\n"}, ValueError, ["linedelimiter", repr("\r\n")]),
        ({"blocksize": 10, "linedelimiter": "--"}, ValueError, ["overlap", "'--'"]),
        ({"blocksize": 10, "linedelimiter": "aba"}, ValueError, ["overlap", "'aba'"]),
        ({"blocksize": 10, "linedelimiter": "é", "encoding": "latin-1"}, ValueError, ["latin-1"]),
        ({"blocksize": 10, "encoding": "utf-16"}, ValueError, ["blocksize", "'utf-16'"]),
        ({"blocksize": 10, "encoding": "utf-16-le"}, ValueError, ["blocksize", "'utf-16-le'"]),
        ({"blocksize": 10, "encoding": "cp037"}, ValueError, ["blocksize", "'cp037'"]),
        ({"blocksize": 10, "encoding": "iso2022_jp"}, ValueError, ["blocksize", "'iso2022_jp'"]),
        ({"blocksize": 10, "encoding": "utf-7"}, ValueError, ["blocksize", "'utf-7'"]),
        ({"blocksize": 10, "linedelimiter": "|", "encoding": "shift_jis"}, ValueError, ["'shift_jis'"]),
        ({"encoding": "rot13"}, LookupError, ["'rot13'"]),
        ({"files_per_partition": 2, "partition_size": 2}, ValueError, ["partition_size or files_per"]),
        ({"include_path": 1}, TypeError, ["include_path", "1 (an int)"]),
    ],
)
def test_arguments_that_cannot_be_meant_are_told_at_once(
    folder: Path, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        read_text(folder / "a.txt", **options)
    check_sentence(raised.value, *words)


@pytest.mark.parametrize("given", [3, None, b"bytes", {"a.txt"}, ["a.txt", 3], iter(["a.txt"])])
def test_what_is_no_path_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="needs a path, a URL or a list of them, got"):
        read_text(given)


def test_no_paths_and_unknown_protocols_are_told() -> None:
    with pytest.raises(ValueError, match="at least one path, got an empty list"):
        read_text([])
    with pytest.raises(ValueError, match="nonsense"):
        read_text("nonsense://somewhere/a.txt")


def test_what_parallel_takes_is_taken_and_nothing_else(folder: Path, inline: Connection) -> None:
    lines = read_text(f"{folder}/*.txt", partition_size=2)
    assert isinstance(lines, ParallelGen)
    assert list(lines) == THREE
    assert lines.stats.elements_in == 3, "files"
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunksize'"):
        read_text(folder / "a.txt", chunksize=10)  # type: ignore[call-overload]


def test_bytes_of_files_are_counted(
    folder: Path, inline: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in "ab":
            archive.writestr(name, name * 1000)
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"x": [*range(100)]}), folder / "a.parquet", row_group_size=9)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    lines = read_text(f"{folder}/*.txt", blocksize=5, progress=True, checkpoint=str(folder / "saved"))
    total = sum(sizes[f"{name}.txt"] for name in "abc")
    for resumed in (0, 9):
        assert lines.count() == 6
        assert (lines.stats.bytes_read, lines.stats.bytes_total, lines.stats.resumed) == (
            total,
            total,
            resumed,
        )
    assert "36.0/36.0 [" in capsys.readouterr().err
    assert lines.stats.snapshot()["bytes_total"] == total
    for rows, nbytes in (
        (read_archive(folder / "a.zip"), 2000),
        (read_parquet(folder / "a.parquet"), sizes["a.parquet"]),
        (read_files(folder, on_error="skip"), sum(sizes.values())),
        (read_text(f"{folder}/*.txt").batched(4), total),
    ):
        rows.count()  # type: ignore[attr-defined]
        assert (rows.stats.bytes_read, rows.stats.bytes_total) == (nbytes, nbytes)  # type: ignore[attr-defined]
        assert f"of {nbytes / 1024:.3g} KiB" in str(rows.stats) or f" of {nbytes} B" in str(rows.stats)  # type: ignore[attr-defined]
    lines = read_text(f"{folder}/*.txt", blocksize=5)
    lines.take(3)
    assert 17 <= lines.stats.bytes_read < lines.stats.bytes_total == total  # type: ignore[operator]
    assert (parallel([1]).stats.bytes_read, parallel([1]).stats.bytes_total) == (0, None)


def test_lines_come_with_the_path_of_their_file(folder: Path, inline: Connection) -> None:
    pairs = list(read_text(f"{folder}/*.txt", include_path=True))
    assert pairs == [(line, str(folder / f"{line[0]}.txt")) for line in THREE]


def test_a_text_says_its_call(folder: Path) -> None:
    lines = read_text("no-such-folder/a.txt").map(len)
    assert repr(lines) == "<ParallelGen: read_text('no-such-folder/a.txt').map(len)>"
