"""Which files a path, a pattern, a folder or a URL means: one that exists is itself, whatever its name is."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from nobody import as_nobody
from scripts import Scripts

from parcoll import Connection, read_csv, read_files, read_jsonl, read_text

NAMES = [
    *("log[1].txt", "log1.txt", "a::b.txt", "file:x.txt", "h#1.txt", "a%20b.txt", "what?.txt", "star*.txt"),
    *("two  spaces.txt", "line\nend.txt", "{a,b}.txt", "ä.txt", os.fsdecode(b"caf\xe9.txt"), "~.txt"),
    *("zip::x.txt", "!(x).txt", "$HOME.txt", "-.txt"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of files with odd names, each with its name in it; it is the current one."""
    for name in NAMES:
        (tmp_path / name).write_bytes(os.fsencode(repr(name)))
    for name in ("run [A]", "run A", "~", "s3:"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(f"in {name}")
    (tmp_path / "s3:" / "bucket").mkdir()
    (tmp_path / "s3:" / "bucket" / "key.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_exists_is_meant(folder: Path, inline: Connection, name: str) -> None:
    expected = os.fsencode(repr(name)).decode(errors="replace")
    for given in (name, folder / name, f"file://{folder}/{name}", f"local://{folder}/{name}"):
        assert list(read_text(given, errors="replace")) == [expected]
        assert list(read_text(given, errors="replace", blocksize=5)) == [expected]
    assert list(read_files(name)) == [(str(folder / name), os.fsencode(repr(name)))]


def test_all_files_that_pathlib_lists_are_read_each_once(folder: Path, cluster: Connection) -> None:
    paths = sorted(folder.glob("*.txt"))
    assert len(paths) == len(NAMES)
    assert list(read_text(paths, errors="replace")) == [repr(path.name) for path in paths]
    assert read_text("*.txt", errors="replace").count() == len(NAMES)


def test_folders_that_exist_are_meant(folder: Path, inline: Connection) -> None:
    for given in ("run [A]/x.txt", "run [A]/*.txt", folder / "run [A]" / "*", "run [A]/*.t[x]t"):
        assert list(read_text(given)) == ["in run [A]"]
    assert list(read_text("~/x.txt")) == ["in ~"]
    assert list(read_text("s3://bucket/key.txt")) == ["here"]
    assert list(read_text("*[AB]/x.txt")) == ["in run A"], "a pattern where no such folder is"
    assert list(read_text("run ?/x.txt")) == ["in run A"]


def test_the_home_is_meant_where_no_such_folder_is(
    tmp_path: Path, inline: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home.txt").write_text("at home")
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/home.txt", "~/h*.txt", Path("~/home.txt")):
        assert list(read_text(given)) == ["at home"]


def test_what_begins_with_a_dot_is_left_out_as_a_shell_does(tmp_path: Path, inline: Connection) -> None:
    for name in (".hidden.txt", ".parcoll-part.txt", "shown.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "er.txt").write_text("deeper")
    assert list(read_text(f"{tmp_path}/*.txt")) == ["shown.txt"]
    assert [Path(path).name for path, _ in read_files(tmp_path)] == ["shown.txt"]
    assert list(read_text(f"{tmp_path}/.hid*")) == [".hidden.txt"]
    assert list(read_text(f"{tmp_path}/**/*.txt")) == ["deeper", "shown.txt"]
    assert list(read_text(f"{tmp_path}/*")) == ["shown.txt"], "a folder that matches is no file"


def test_each_pattern_without_a_match_is_an_error(folder: Path) -> None:
    for given in ([folder / "log1.txt", folder / "nothing*.txt"], ["nothing*.txt", "*.txt"], "run A/*.csv"):
        with pytest.raises(FileNotFoundError, match="finds no file that matches") as raised:
            read_text(given)
        assert "nothing*.txt" in str(raised.value) or "run A/*.csv" in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"nothing\*"):
        read_text(["memory://somewhere/nothing*"])
    with pytest.raises(FileNotFoundError, match="somewhere/nothing"):
        read_text("memory://somewhere/nothing")


def test_a_folder_says_what_to_write(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"'run A' is a folder: write 'run A/\*.txt'"):
        read_text("run A")
    with pytest.raises(IsADirectoryError, match=r"/\*\*/\*.csv'"):
        read_csv(folder)
    with fsspec.open(f"memory://{tmp_path.name}/in/a.jsonl", "w") as file:
        file.write("1")
    with pytest.raises(IsADirectoryError, match=r"in/\*.jsonl'"):
        read_jsonl(f"memory://{tmp_path.name}/in")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file in the folder 'empty'"):
        read_files("empty")


def test_what_is_no_file_is_left_out_of_folders_and_patterns(tmp_path: Path, inline: Connection) -> None:
    """To open a pipe that nobody writes into would take for ever."""
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "b.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "c.txt"))
        assert list(read_text(f"{tmp_path}/*.txt")) == ["a"]
        assert [Path(path).name for path, _ in read_files(tmp_path)] == ["a.txt"]
    (tmp_path / "d.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"d\.txt"):
        list(read_text(f"{tmp_path}/*.txt"))


def test_links_that_lead_back_to_their_folder_double_nothing(tmp_path: Path, inline: Connection) -> None:
    """`glob` gives each file forty times, and with three such links it never ends."""
    for name in ("a", "a/b", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(f"{name}\n")
    for link, to in (
        ("a/self", "."),
        ("a/b/up", ".."),
        ("a/b/up too", tmp_path / "a"),
        ("a/side", "../other"),
    ):
        (tmp_path / link).symlink_to(to)
    assert list(read_text(tmp_path / "a" / "**" / "*.txt")) == ["a/b\n", "other\n", "a\n"]
    assert list(read_text(tmp_path / "**" / "b" / "*")) == ["a/b\n"]
    assert read_files(tmp_path / "a" / "**").count() == 3


def test_a_file_url_may_be_quoted(folder: Path, inline: Connection) -> None:
    for name in NAMES:
        assert list(read_files((folder / name).as_uri())) == [(str(folder / name), os.fsencode(repr(name)))]
    assert list(read_text(f"file://{folder}/two%20*.txt")) == [repr("two  spaces.txt")]
    assert list(read_text(f"file://{folder}/run%20%5BA%5D/x.txt")) == ["in run [A]"]
    assert list(read_text(f"file://{folder}/a%20*.txt")) == [repr("a%20b.txt")], "what exists comes first"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody who may not look")
def test_a_folder_that_cannot_be_looked_into_is_named(
    tmp_path: Path, inline: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    assert list(read_text(tmp_path / "o*" / "*.txt")) == ["open"], "which imports what nobody may read"
    (tmp_path / "closed").chmod(0)
    with as_nobody(tmp_path):
        for given in (tmp_path / "closed" / "*.txt", tmp_path / "c*" / "**" / "*.txt"):
            with pytest.raises(PermissionError, match=r"/closed'"):
                read_text(given)
        with pytest.raises(PermissionError, match=r"/closed'"):
            read_files(tmp_path / "closed")
        with pytest.raises(PermissionError, match=r"/closed/x\.txt'"):
            read_text(tmp_path / "closed" / "x.txt", blocksize=5)
        assert list(read_text(tmp_path / "**" / "*.txt")) == ["open"]
    assert "leaves out what is in " in caplog.text
    assert "/closed': Permission denied" in caplog.text


def test_a_pipe_that_is_named(tmp_path: Path, inline: Connection) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a\nb\n",))
    writer.start()
    assert list(read_text(tmp_path / "pipe")) == ["a\n", "b\n"]
    writer.join()


@pytest.mark.skipif(sys.platform != "linux", reason="such files are Linux's")
def test_files_that_are_made_when_they_are_read(cluster: Connection) -> None:
    for path in ("/proc/version", "/proc/cpuinfo"):
        with open(path) as file:
            assert list(read_text(path)) == [*file]


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0"])
def test_the_streams_of_the_script(scripts: Scripts, name: str) -> None:
    """A worker has other ones under these names."""
    scripts.write("lines.txt", "a\nb\n")
    script = scripts.write(
        "script.py",
        f"""
        from parcoll import read_text
        try:
            print(list(read_text({name!r})))
        except ValueError as error:
            print(error)
        """,
    )
    with open(scripts.folder / "lines.txt") as lines:
        out, err = scripts.start(script, stdin=lines).communicate(timeout=60)
    assert (out, err) == ("['a\\n', 'b\\n']\n", "")
    out, err = scripts.start(script, stdin=-1).communicate("a\n", timeout=60)
    told = f"is a stream of this process alone: write parallel(open({name!r})) for its lines\n"
    assert out == f"read_text() has the workers read files, and {name!r} {told}", err


def test_files_in_the_memory_of_another_process(tmp_path: Path, cluster: Connection) -> None:
    with fsspec.open(f"memory://{tmp_path.name}/a.txt", "w") as file:
        file.write("a")
    with pytest.raises(FileNotFoundError, match=r"in the memory of the process that has listed it.*inline"):
        list(read_text(f"memory://{tmp_path.name}/a.txt"))


def test_odd_names_elsewhere_are_meant_too(tmp_path: Path, inline: Connection) -> None:
    top = f"memory://{tmp_path.name}"
    for name in ("log[1].txt", "log1.txt", "a b.txt", "h#1.txt"):
        with fsspec.open(f"{top}/{name}", "w") as file:
            file.write(name)
    for name in ("log[1].txt", "a b.txt", "h#1.txt"):
        assert list(read_text(f"{top}/{name}")) == [name]
    assert read_text([f"{top}/log[1].txt", __file__], blocksize=2**20).first() == "log[1].txt"
    assert [name for _, name in read_files(top, mode="r")] == ["a b.txt", "h#1.txt", "log1.txt", "log[1].txt"]
