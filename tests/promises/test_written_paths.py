"""Where files are written: what exists, what cannot be, links, permissions, and what comes meanwhile."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from nobody import as_nobody

from parcoll import Connection, parallel
from parcoll.output.placing import LocalTarget


def names(folder: Path) -> list[str]:
    """Return all that is in a folder."""
    return sorted(os.listdir(folder))


class TestWhatIsThere:
    """Files that exist, and places where none can be."""

    def refused(self, path: Any, kind: type[Exception], match: str, **options: Any) -> None:
        def evaluated(*_: Any) -> None:
            raise AssertionError("nothing is to be evaluated")

        def source() -> Any:
            yield evaluated()

        with pytest.raises(kind, match=match):
            parallel(source).map(evaluated).write_jsonl(path, **options)

    def test_a_file_is_not_replaced(self, inline: Connection, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("old")
        (tmp_path / "p-00007.x").write_text("old")
        self.refused(tmp_path / "out", FileExistsError, "only with overwrite=True")
        self.refused(tmp_path / "p-*.x", FileExistsError, "p-00007")
        assert names(tmp_path) == ["out", "p-00007.x"]
        assert parallel([1]).write_jsonl(tmp_path / "q-*.x").rows == 1

    def test_it_is_replaced_when_all_is_written(self, cluster: Connection, tmp_path: Path) -> None:
        path = tmp_path / "out"
        path.write_text("old")
        with pytest.raises(ZeroDivisionError):
            parallel(range(50)).map(lambda x: 1 / (x - 40)).write_jsonl(path, overwrite=True)
        assert path.read_text() == "old"
        parallel(range(3)).write_jsonl(path, overwrite=True)
        assert path.read_text() == "0\n1\n2\n"
        assert names(tmp_path) == ["out"]

    def test_a_file_may_be_read_while_it_is_replaced(self, cluster: Connection, tmp_path: Path) -> None:
        path = tmp_path / "out"
        path.write_text("".join(f"{x}\n" for x in range(10_000)))
        with path.open() as lines:
            parallel(lines).map(lambda line: line.strip() + "!").write_text(path, overwrite=True)
        assert path.read_text() == "".join(f"{x}!\n" for x in range(10_000))

    def test_places_where_no_file_can_be(self, inline: Connection, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        os.mkfifo(tmp_path / "pipe")
        self.refused(tmp_path / "folder", IsADirectoryError, "folder", overwrite=True)
        self.refused(tmp_path / "file" / "out", NotADirectoryError, "file")
        self.refused(tmp_path / "file" / "new" / "out-*", NotADirectoryError, "file")
        self.refused(tmp_path / "pipe", ValueError, "a device or a pipe", overwrite=True)
        self.refused("/dev/full", ValueError, "a device or a pipe", overwrite=True)
        self.refused(f"{tmp_path}/", ValueError, "that of a folder")
        self.refused("", ValueError, "that of a folder")
        self.refused(tmp_path / "a*b*", ValueError, "once, got")
        self.refused(tmp_path / "*" / "a", ValueError, "not of a folder, got")
        self.refused(tmp_path / "a", ValueError, r"needs a `\*`", rows_per_file=3)
        self.refused(tmp_path / "a", ValueError, r"needs a `\*`", bytes_per_file="1 MiB")
        self.refused(tmp_path / "a*", ValueError, "got both", bytes_per_file="1 MiB", rows_per_file=1)
        self.refused(tmp_path / "a*", ValueError, "from 1 up", rows_per_file=0)
        self.refused(tmp_path / "a*", ValueError, "bytes_per_file", bytes_per_file="many")
        self.refused(b"a", TypeError, "path or a URL")
        self.refused(3, TypeError, "path or a URL")
        self.refused(tmp_path / "a", TypeError, "overwrite", overwrite="yes")
        self.refused(tmp_path / "a", ValueError, "compression", compression="rar")
        for name in ("a.zip", "p-*.7Z", "a.jsonl.sz"):  # it would be read as a packed one
            self.refused(tmp_path / name, ValueError, "says by its end that it is packed as")
        self.refused(tmp_path / "a", ValueError, "storage_options", storage_options={"key": "x"})
        self.refused(tmp_path / ("n" * 300), OSError, "too long")
        self.refused(tmp_path / "new" / ("n" * 300), OSError, "too long")
        self.refused(tmp_path / ("n" * 252 + "*"), OSError, "too long")
        self.refused("nosuch://a/b", ValueError, "nosuch")
        (tmp_path / "p-00007").mkdir()
        self.refused(tmp_path / "p-*", IsADirectoryError, "p-00007", overwrite=True)
        end, other = os.pipe()
        self.refused(f"/dev/fd/{other}", ValueError, "a device or a pipe", overwrite=True)
        os.close(end)
        os.close(other)
        assert names(tmp_path) == ["file", "folder", "p-00007", "pipe"]

    def test_what_others_have_written_stays(self, inline: Connection, tmp_path: Path) -> None:
        kept = ["p-20200101", "p-3", "p-00003.bak", "p-+0003"]
        for name in [*kept, "p-00003", "p-00100"]:
            (tmp_path / name).write_text("")
        written = parallel([1, 2]).write_jsonl(tmp_path / "p-*", overwrite=True, rows_per_file=1)
        assert names(tmp_path) == sorted([*kept, *map(os.path.basename, written.files)])

    def test_what_others_have_left_is_not_done(
        self, inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where anybody may write, a folder of that name may be anybody's."""
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "lock").touch()
        target = LocalTarget(str(tmp_path / "out" / "p-*"), True, "write_text()")
        target.begin()
        (left,) = (name for name in names(tmp_path) if name.startswith(".parcoll"))
        target.abandon()
        (tmp_path / left).symlink_to(precious)
        planted = tmp_path / f"{left[:-16]}{'a' * 16}"
        (planted / "files").mkdir(parents=True)
        (planted / "files" / "x").touch()
        (planted / "lock").touch()
        moves = {"moves": [["x", str(precious / "x")]], "stale": [str(precious / "lock")]}
        (planted / "commit").write_text(json.dumps(moves))
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
        target.check()
        assert names(precious) == ["lock"]
        assert (planted / "lock").exists()
        monkeypatch.undo()
        planted.joinpath("commit").unlink()
        target.check()
        assert names(tmp_path) == [left, "precious"]
        assert names(precious) == ["lock"]

    @pytest.mark.parametrize(
        "listed",
        [
            *([], {"files": 7}, {"files": ["p-00000"], "moves": 7}, {"moves": [["a", "b"]]}),
            {"files": [{"name": ["x"], "bytes": 1}], "moves": [], "stale": []},
        ],
    )
    def test_a_list_that_is_none(self, inline: Connection, listed: Any) -> None:
        system = fsspec.filesystem("memory")
        if isinstance(listed, dict):
            listed["unfinished"] = f"{socket.gethostname()} 999999999 1"
        system.pipe_file("/lists/_p-manifest.json", json.dumps(listed).encode())
        written = parallel([1]).write_jsonl("memory://lists/p-*", overwrite=True)
        assert json.loads(system.cat_file("/lists/_p-manifest.json"))["files"][0]["name"] == "p-00000"
        assert written.rows == 1
        system.rm("/lists", recursive=True)

    def test_of_two_runs_that_end_at_once_one_counts(self, tmp_path: Path) -> None:
        def run(rows: int) -> None:
            target = LocalTarget(str(tmp_path / "p-*"), True, "write_text()")
            target.begin()
            for number in range(rows):
                with target.open(number) as file:
                    file.write(b"%d" % rows)
            begin.wait()
            target.commit()

        for _ in range(5):
            begin = threading.Barrier(2)
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(run, [40, 30]))
            found = {path.read_text() for path in tmp_path.iterdir()}
            assert [str(len(names(tmp_path)))] == [*found]

    def test_a_folder_without_permission(
        self, inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)  # the user may be root
        self.refused(tmp_path / "new" / "out", PermissionError, "may not write in the folder")
        assert names(tmp_path) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody who may not look")
    def test_a_folder_that_nobody_may_look_into(self, inline: Connection, tmp_path: Path) -> None:
        for overwrite in (False, True):  # which imports what nobody may read
            parallel([0]).write_jsonl(tmp_path / "before", overwrite=overwrite)
        (tmp_path / "box").mkdir()
        (tmp_path / "box").chmod(0o333)
        with as_nobody(tmp_path):
            assert parallel([1]).write_jsonl(tmp_path / "box" / "a").rows == 1
            assert parallel([2]).write_jsonl(tmp_path / "box" / "a", overwrite=True).rows == 1
            with pytest.raises(FileExistsError):
                parallel([3]).write_jsonl(tmp_path / "box" / "a")
        assert (tmp_path / "box" / "a").read_text() == "2\n"
        assert names(tmp_path / "box") == ["a"]

    def test_a_codec_that_is_missing(
        self, inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("lz4", "lz4.frame", "zstandard", "compression.zstd"):
            monkeypatch.setitem(sys.modules, name, None)
        self.refused(tmp_path / "a.lz4", ModuleNotFoundError, "needs the package lz4")
        self.refused(tmp_path / "a.zst", ModuleNotFoundError, "needs the package zstandard")
        assert names(tmp_path) == []

    def test_links_are_followed_as_open_does(self, inline: Connection, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real/new")
        parallel([1]).write_jsonl(tmp_path / "link")
        assert (tmp_path / "real" / "new").read_text() == "1\n"
        parallel([2]).write_jsonl(tmp_path / "link", overwrite=True)
        assert (tmp_path / "real" / "new").read_text() == "2\n"
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "real") == ["new"]

    def test_permissions_are_those_of_any_file(self, inline: Connection, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            parallel([1]).write_jsonl(tmp_path / "new" / "a")
            parallel([1]).write_jsonl(tmp_path / "p-*")
            (tmp_path / "old").write_text("")
            (tmp_path / "old").chmod(0o604)
            parallel([1]).write_jsonl(tmp_path / "old", overwrite=True)
            (tmp_path / "q-00000").touch(0o604)
            parallel([1, 2]).write_jsonl(tmp_path / "q-*", overwrite=True, rows_per_file=1)
        finally:
            os.umask(before)
        modes = [
            stat.S_IMODE((tmp_path / name).stat().st_mode)
            for name in ("new", "new/a", "p-00000", "old", "q-00000", "q-00001")
        ]
        assert modes == [0o750, 0o640, 0o640, 0o604, 0o600, 0o640]

    def test_paths_are_what_they_say(
        self, inline: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert parallel([1]).write_jsonl("out[1]::?.txt").files == ["out[1]::?.txt"]
        assert parallel([1]).write_jsonl("a/b/c-*").files == ["a/b/c-00000"]
        parallel([1]).write_jsonl("~/x")
        parallel([1]).write_jsonl(f"file://{tmp_path}/y")
        assert names(tmp_path) == ["a", "home", "out[1]::?.txt", "y"]

    def test_a_folder_that_comes_meanwhile(self, inline: Connection, tmp_path: Path) -> None:
        def source() -> Any:
            yield 1
            (tmp_path / "new" / "deep").mkdir(parents=True)
            (tmp_path / "new" / "other").write_text("another's")
            yield 2

        parallel(source).write_jsonl(tmp_path / "new" / "deep" / "a-*")
        assert (tmp_path / "new" / "deep" / "a-00000").read_text() == "1\n2\n"
        assert names(tmp_path) == ["new"]
        assert names(tmp_path / "new") == ["deep", "other"]

    def test_a_file_that_comes_meanwhile_stays(self, inline: Connection, tmp_path: Path) -> None:
        for name in ("out", "p-00000"):

            def source(name: str = name) -> Any:
                yield 1
                (tmp_path / name).write_text("another's")

            path = tmp_path / name.replace("00000", "*")
            with pytest.raises(FileExistsError):
                parallel(source).write_jsonl(path)
            assert (tmp_path / name).read_text() == "another's"
        assert names(tmp_path) == ["out", "p-00000"]

    @pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no other filesystem")
    def test_another_filesystem(self, inline: Connection, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
            (tmp_path / "link").symlink_to(other)
            (tmp_path / "file").symlink_to(f"{other}/file")
            parallel([1, 2]).write_jsonl(tmp_path / "link" / "new" / "a-*", rows_per_file=1)
            parallel([3]).write_jsonl(tmp_path / "link" / "b")
            parallel([4]).write_jsonl(tmp_path / "file")
            assert sorted(os.listdir(other)) == ["b", "file", "new"]
            assert names(Path(other, "new")) == ["a-00000", "a-00001"]
        assert names(tmp_path) == ["file", "link"]
