"""Rows, whole files and archives: the elements are those that Python's own modules read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from parcoll import (
    Connection,
    parallel,
    read_archive,
    read_csv,
    read_files,
    read_jsonl,
    read_parquet,
    read_text,
)

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}

# JSON Lines ---------------------------------------------------------------------------------------

VALUES = [
    {"x": 1},
    [1, "two"],
    None,
    "\u2028 ends no line",
    {"y": {"z": [True, 1e300]}},
    10**30,
    "ä\U0001f600",
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n\t\n"])
@pytest.mark.parametrize("ascii", [True, False])
def test_each_line_is_a_value(tmp_path: Path, inline: Connection, end: str, ascii: bool) -> None:
    path = tmp_path / "a.jsonl"
    text = end.join(json.dumps(value, ensure_ascii=ascii) for value in VALUES)
    path.write_text(text, encoding="utf-8", newline="")
    for size in (None, *range(1, 30), len(text)):
        assert list(read_jsonl(path, blocksize=size)) == VALUES, size


def test_the_mark_of_utf_8_is_in_no_value(tmp_path: Path, inline: Connection) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n2\n', encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('"ä"\n', encoding="utf-16")
    for size in (None, 1, 2, 5):
        assert list(read_jsonl(tmp_path / "a.jsonl", blocksize=size)) == [{"x": 1}, 2]
    assert list(read_jsonl(tmp_path / "b.jsonl", encoding="utf-16")) == ["ä"]
    assert read_text(tmp_path / "a.jsonl").first() == '\ufeff{"x": 1}\n', "as open gives it"
    assert read_text(tmp_path / "a.jsonl", encoding="utf-8-sig").first() == '{"x": 1}\n'


def test_a_mark_within_a_file_stays_however_it_is_cut(tmp_path: Path, inline: Connection) -> None:
    (tmp_path / "a.txt").write_text("one\n\ufefftwo\n", encoding="utf-8-sig")
    for size in (None, *range(1, 20)):
        lines = read_text(tmp_path / "a.txt", encoding="utf-8-sig", blocksize=size)
        assert list(lines) == ["one\n", "\ufefftwo\n"], size


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n "x": 1\n}\n', 1),
        ('1\n2\n{"x":\n', 3),
        ("1\n\n\nnot json\n", 4),
        ("1\n2 3\n", 2),
        ("[" * 10**5, 1),
    ],
)
def test_what_is_no_value_is_told_with_its_line(
    tmp_path: Path, inline: Connection, text: str, line: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    values = read_jsonl(path, on_error="skip")
    assert list(values) == [1, 2][: text.count("1\n2\n") + text.startswith("1\n")]
    error = values.errors[0]
    assert f"{str(path)!r}, line {line} is no JSON value" in str(error.exception)
    assert error.element.path == str(path)
    with pytest.raises(ValueError, match="is no JSON value"):
        list(read_jsonl(path))


# csv ----------------------------------------------------------------------------------------------

TABLES: list[tuple[str, dict[str, Any]]] = [
    ('a,b\r\n1,"x\r\ny"\r\n"""q""",\n', {}),
    ("a;b\n1;2,5\n", {"delimiter": ";"}),
    ("a\tb\n1\tx y\n", {"dialect": "excel-tab"}),
    ("a|b\n'1|'|2\n", {"delimiter": "|", "quotechar": "'"}),
    ("a,b\n1, 2\n", {"skipinitialspace": True}),
    ("a,b\n1\\,5,2\n", {"escapechar": "\\", "quoting": csv.QUOTE_NONE}),
    ("a,b\r1,2\r3,4", {}),
    ("a,b\n\n1,2\n\n\n3,4\n", {}),
    ("a,b\n", {}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "how"), TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_rows_are_those_of_a_dict_reader(
    tmp_path: Path, inline: Connection, text: str, how: dict[str, Any], encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding=encoding, newline="")
    expected = list(csv.DictReader(io.StringIO(text, newline=""), **how))
    read = read_csv(path, encoding="utf-16" if encoding == "utf-16" else "utf-8", **how)
    assert list(read) == expected


def test_a_table_can_be_cut_where_no_value_has_a_line_end(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "a.csv"
    rows = [{"name": f"ä,{number}", "size": "x" * (number % 7)} for number in range(30)]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["name", "size"])
        writer.writeheader()
        writer.writerows(rows)
    for size in (*range(1, 40), 10**6):
        assert list(read_csv(path, blocksize=size, newlines_in_values=False)) == rows, size
    with pytest.raises(ValueError, match="newlines_in_values=False"):
        read_csv(path, blocksize=10)
    path.write_text('a,b\n1,"x\ny"\n2,z\n')
    for size in (None, 5, 8, 10):
        with pytest.raises(
            ValueError, match=r"a\.csv', line .*(goes on over the end of the line|value, and)"
        ):
            list(read_csv(path, blocksize=size, newlines_in_values=False))


def test_values_that_are_numbers_can_be_cut(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"a","b"\n"x",1\n"y",2.5\n')
    for size in (None, 1, 9, 100):
        rows = read_csv(path, newlines_in_values=False, blocksize=size, quoting=csv.QUOTE_NONNUMERIC)
        assert list(rows) == [{"a": "x", "b": 1.0}, {"a": "y", "b": 2.5}]
    path.write_text('a,"b\nc"\n1,2\n')
    for size in (None, 1, 9, 100):
        with pytest.raises(ValueError, match=r"a\.csv', line 1: a quoted value goes on over the end"):
            list(read_csv(path, newlines_in_values=False, blocksize=size))


def test_columns_are_picked_or_named(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\n1,2,3\n")
    assert list(read_csv(path, columns=["c", "a"])) == [{"c": "3", "a": "1"}]
    named = read_csv(path, columns=["x", "y", "z"], header=False)
    assert [tuple(row.values()) for row in named] == [("a", "b", "c"), ("1", "2", "3")]
    assert list(read_csv(path, include_path=True, columns=["a"])) == [({"a": "1"}, str(path))]
    with pytest.raises(ValueError, match="no column 'q', only"):
        list(read_csv(path, columns=["q"]))
    with pytest.raises(ValueError, match="header=False needs columns="):
        read_csv(path, header=False)
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="more than one column 'a'"):
        list(read_csv(path))


@pytest.mark.parametrize(
    ("text", "line", "values"),
    [
        ("a,b\n1,2\n3\n", 3, 1),
        ("a,b\n1,2\n\n3,4,5\n", 4, 3),
        ('a,b\n"x\ny",2\n1,2,3\n', 4, 3),
        ("a,b\n1\n", 2, 1),
    ],
)
def test_a_row_with_more_or_fewer_values_is_told_with_its_line(
    tmp_path: Path, inline: Connection, text: str, line: int, values: int
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.csv', line {line} has {values} value"):
        list(read_csv(tmp_path / "a.csv"))


def test_what_the_script_has_set_for_csv_holds_on_workers(tmp_path: Path, cluster: Connection) -> None:
    csv.register_dialect("ours", delimiter="|")
    limit = csv.field_size_limit(10**6)
    try:
        (tmp_path / "a.csv").write_text(f"a|b\n1|{'x' * 200_000}\n")
        assert [len(row["b"]) for row in read_csv(tmp_path / "a.csv", dialect="ours")] == [200_000]
    finally:
        csv.unregister_dialect("ours")
        csv.field_size_limit(limit)


@pytest.mark.parametrize(
    "how", [{"delimiter": "ab"}, {"quotechar": 3}, {"dialect": "no-such"}, {"quoting": 99}]
)
def test_a_dialect_that_csv_refuses_is_refused_at_once(how: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="the csv module cannot read with"):
        read_csv(__file__, **how)


# Whole files and archives -------------------------------------------------------------------------


def test_files_are_read_whole(tmp_path: Path, cluster: Connection) -> None:
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes(range(256)) * number)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"a\r\nb"))
    expected = [(str(path), path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    assert list(read_files(tmp_path)) == expected
    assert list(read_files(tmp_path).map(lambda pair: len(pair[1]))) == [0, 256, 512, len(expected[3][1])]
    assert list(read_files(tmp_path / "text.gz", compression="infer")) == [(expected[3][0], b"a\r\nb")]
    assert list(read_files(tmp_path / "text.gz", mode="r", compression="infer")) == [(expected[3][0], "a\nb")]
    for mode in ("w", "wb", "rt", 3, None):
        with pytest.raises(ValueError, match='mode must be "rb" or "r"'):
            read_files(tmp_path, mode=mode)


MEMBERS = {"a.txt": b"a" * 5000, "dir/b.json": b"{}", "dir/c.txt": b"", "ä/d.bin": bytes(range(256)) * 50}


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_the_members_of_a_zip_file(tmp_path: Path, cluster: Connection, method: int) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.write(b"something before it")  # as in a program that unpacks itself
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("folder/", b"")
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
    assert list(read_archive(path)) == list(MEMBERS.items())
    assert list(read_archive(path, "*.txt").map(lambda member: member[0])) == ["a.txt", "dir/c.txt"]
    assert (
        list(read_archive([path, path], "dir/b*", include_path=True))
        == [(("dir/b.json", b"{}"), str(path))] * 2
    )
    assert list(read_archive(path, "nothing")) == []
    assert read_archive(path).stats.elements_in is not None
    assert read_archive(path).bag.npartitions == len(MEMBERS)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.txt", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", b"second")
    assert list(read_archive(path)) == [("a.txt", b"first"), ("a.txt", b"second")]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "data"])
def test_the_members_of_a_tar_file(tmp_path: Path, cluster: Connection, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with tarfile.open(path, {"tgz": "w:gz", "data": "w:gz"}.get(suffix) or f"w:{suffix[4:]}") as archive:
        for name, content in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, name in (
            (tarfile.DIRTYPE, "folder"),
            (tarfile.SYMTYPE, "points"),
            (tarfile.LNKTYPE, "also"),
            (tarfile.LNKTYPE, "./again"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "also" if "again" in name else "a.txt"
            archive.addfile(member)
    linked = [(name, MEMBERS["a.txt"]) for name in ("also", "./again")]
    assert list(read_archive(path)) == [*MEMBERS.items(), *linked]
    assert list(read_archive(path, "*again")) == linked[1:]
    assert list(read_archive(path, "dir/*")) == [
        (name, MEMBERS[name]) for name in ("dir/b.json", "dir/c.txt")
    ]


def test_what_members_link_to_is_no_file(tmp_path: Path, cluster: Connection) -> None:
    """A hard link to a symbolic one, or to a pipe, is left out as these are; so are links in zip files."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, to in (("link", tarfile.SYMTYPE, "file"), ("pipe", tarfile.FIFOTYPE, "")):
            for linked in (name, f"to {name}"):
                member = tarfile.TarInfo(linked)
                member.type, member.linkname = (kind, to) if linked == name else (tarfile.LNKTYPE, name)
                tar.addfile(member)
        member = tarfile.TarInfo("file")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"in"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "file")
        archive.writestr("file", "in")
    assert list(read_archive([tmp_path / "a.tar", tmp_path / "b.zip"])) == [("file", b"in")] * 2


def test_a_tar_file_that_ends_with_a_zip_file_is_a_tar_file(tmp_path: Path, inline: Connection) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("within", "1")
    with tarfile.open(tmp_path / "backup", "w") as tar:
        for name, content in (("a.txt", b"a"), ("b.zip", inner.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert list(read_archive(tmp_path / "backup")) == [("a.txt", b"a"), ("b.zip", inner.getvalue())]


def test_an_archive_that_is_damaged_is_named(tmp_path: Path, inline: Connection) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[content.index(b"aaaa")] ^= 1
    path.write_bytes(content)
    members = read_archive(path, on_error="skip")
    assert list(members) == [(name, content) for name, content in MEMBERS.items() if name != "a.txt"]
    (error,) = members.errors
    assert error.element.part.name == "a.txt"
    assert f"while reading {str(path)!r} member 'a.txt'" in error.exception.__notes__
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        tar.add(__file__, "one")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name in ("one", "two"):
            tar.addfile(tarfile.TarInfo(name))
    header = bytearray(plain.getvalue())
    header[600] ^= 1
    for name, damaged in (
        ("cut.tar.gz", whole.getvalue()[:-200]),
        ("end.tar.gz", whole.getvalue()[:-5]),
        ("sum.tar.gz", whole.getvalue()[:-8] + b"12345678"),
        ("head.tar", bytes(header)),
        ("half.tar", plain.getvalue()[:700]),
        ("none.zip", b"neither of them"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises((OSError, EOFError, tarfile.ReadError)) as raised:
            list(read_archive(tmp_path / name))
        assert any(name in note for note in raised.value.__notes__)


# Parquet ------------------------------------------------------------------------------------------


def test_rows_and_batches_of_parquet(tmp_path: Path, cluster: Connection) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"x": list(range(1000)), "y": [str(n) for n in range(1000)]})
    for name, size in (("a", 300), ("b", 1000)):
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=size)
    parquet.write_table(table.slice(0, 0), tmp_path / "c.parquet")
    rows = read_parquet(tmp_path / "*.parquet")
    assert list(rows) == table.to_pylist() * 2
    assert rows.bag.npartitions == 6
    assert rows.stats.elements_in == 6
    assert list(read_parquet(tmp_path / "a.parquet", columns=["y"]).take(2)) == [{"y": "0"}, {"y": "1"}]
    assert list(read_parquet(tmp_path / "a.parquet", columns=[])) == [{}] * 1000
    batches = read_parquet(tmp_path / "a.parquet", columns=["x"], batch_rows=200)
    assert [batch.num_rows for batch in batches] == [200, 100, 200, 100, 200, 100, 100]
    assert pyarrow.Table.from_batches(batches) == table.select(["x"])
    assert list(read_parquet(tmp_path / "c.parquet")) == []
    with pytest.raises(ValueError, match=r"a\.parquet' has no column 'q', only \['x', 'y'\]"):
        read_parquet(tmp_path / "a.parquet", columns=["x", "q"])
    parquet.write_table(pyarrow.table({"n": [{"x": 1, "y": 2}], "a.b": [3]}), tmp_path / "nested")
    assert list(read_parquet(tmp_path / "nested", columns=["n.x", "a.b"])) == [{"n": {"x": 1}, "a.b": 3}]
    for column in ("n.z", "n.xy", "a", "n."):
        with pytest.raises(ValueError, match=f"has no column '{column}'"):
            read_parquet(tmp_path / "nested", columns=[column])
    (tmp_path / "d.parquet").write_text("a,b\n")
    with pytest.raises(pyarrow.ArrowInvalid) as raised:
        read_parquet(tmp_path / "*.parquet")
    assert any("d.parquet" in note for note in raised.value.__notes__)


def test_without_pyarrow_parquet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package pyarrow, here and on the workers"):
        read_parquet("a.parquet")
    assert parallel([1]).first() == 1


# Compressions -------------------------------------------------------------------------------------


def test_a_value_that_is_too_long_says_how_to_allow_it(tmp_path: Path, inline: Connection) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n1,{'x' * 200_000}\n")
    with pytest.raises(csv.Error, match="field larger than field limit") as raised:
        list(read_csv(tmp_path / "a.csv"))
    notes = "; ".join(raised.value.__notes__)
    assert f"{str(tmp_path / 'a.csv')!r}, line 2; call csv.field_size_limit" in notes


@pytest.mark.parametrize("suffix", ["br", "7z", "rar", "lzo"])
def test_what_cannot_be_unpacked_is_not_taken_for_a_text(
    tmp_path: Path, inline: Connection, suffix: str
) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    path.write_text("text after all\n")
    with pytest.raises(ValueError, match="cannot be read here: unpack it, or pass compression=None"):
        read_text(path, errors="replace")
    assert list(read_text(path, compression=None)) == ["text after all\n"]


def test_codecs_that_are_missing_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("a.zst", "zstandard"), ("b.LZ4", "lz4"), ("c.tar.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd")
        for module in ("compression.zstd", "backports.zstd", "zstandard", "lz4.frame"):
            monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=f"needs the package {package}"):
            read_text(tmp_path / name, errors="replace")
    with pytest.raises(ModuleNotFoundError, match="compression='zstd' needs the package zstandard"):
        read_text(__file__, compression="zstd")
    with pytest.raises(ModuleNotFoundError, match="zstandard"):
        read_archive(tmp_path / "c.tar.zst")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "lz4"])
def test_packed_files_are_read_to_their_last_part(tmp_path: Path, inline: Connection, suffix: str) -> None:
    """Files may be packed in several parts, one behind the other, as `cat` makes them."""
    pack = PACK.get(suffix)
    if pack is None:
        module = pytest.importorskip({"zst": "zstandard", "lz4": "lz4.frame"}[suffix])
        pack = module.compress
    parts = [b"".join(b"%d line %d\n" % (part, n) for n in range(30_000)) for part in range(3)]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(map(pack, parts)))
    assert list(read_text(path)) == b"".join(parts).decode().splitlines(keepends=True)
    path.write_bytes(path.read_bytes()[:-100])
    lines = read_text(path, on_error="skip")
    assert 60_000 <= lines.count() < 90_000
    (error,) = lines.errors
    assert isinstance(error.exception, EOFError)
    assert error.exception.__notes__[0].startswith(f"while reading {str(path)!r}, line ")


def test_a_zip_file_of_several_members_is_no_text(tmp_path: Path, inline: Connection) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "1\n")
        archive.writestr("b", "2\n")
    with pytest.raises(ValueError, match=r"has 2 members.*read_archive\(\) reads all"):
        list(read_text(tmp_path / "a.zip"))
