"""A folder any of whose files is damaged: it is refused, and the file named, or the results are right."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parcoll import CheckpointError, Connection, ParallelGen, parallel
from parcoll.checkpoint.descriptions import CHAIN, END
from parcoll.checkpoint.storage import LOCK, TEMPORARY

ELEMENTS = [*range(24)]
PIECES = ["parcoll-000000000000-000000000003.piece", "parcoll-000000000003-000000000024.piece"]
FILES = [CHAIN, END, *PIECES]


def halves(x: int) -> list[str]:
    if x % 5 == 3:
        raise ValueError(f"no half of {x}")
    return [f"{x / 2}"] * (x % 3)


RESULTS = [text for x in ELEMENTS if x % 5 != 3 for text in halves(x)]


def chain(folder: Path | str, **more: Any) -> ParallelGen[str]:
    return parallel(ELEMENTS, partition_size=3, checkpoint=folder, on_error="skip", **more).flatmap(halves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run that has ended."""
    from parcoll import connect

    folder = tmp_path_factory.mktemp("whole") / "run"
    with connect("inline"):
        chain(folder).take(1)
        assert list(chain(folder)) == RESULTS
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def refused(collection: ParallelGen[str]) -> tuple[list[str], str | None]:
    """Return the results, or the sentence with which the folder is refused."""
    try:
        return list(collection), None
    except CheckpointError as error:
        return [], str(error)


def outcome(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> str:
    """Evaluate, and say what came of it.

    "refused" in one sentence that names the file, "told" if all is as before and a warning names the file,
    "as before" if nothing had to be told; else what is wrong.
    """
    caplog.clear()
    collection = chain(folder)
    with caplog.at_level(logging.WARNING, "parcoll"):
        found, told_so = refused(collection)
    if told_so is not None:
        right = re.match(f"the checkpoint {str(folder)!r} .*{name}.*: .*delete the folder", told_so)
        return "refused" if right and told_so.isprintable() else told_so
    failed = [error.element for error in collection.errors]
    if found != RESULTS or failed != [3, 8, 13, 18, 23]:
        return f"{found}, {failed}"
    return "told" if name in caplog.text else "as before"


def test_what_the_folder_has(whole: Path):
    assert len(names_of(whole)) >= 4
    assert {CHAIN, END} < set(names_of(whole))


def test_flipped_bits(inline: Connection, whole: Path, folder: Path, caplog: pytest.LogCaptureFixture):
    chosen = random.Random(14)
    for name in names_of(whole):
        content = (whole / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for position in chosen.sample(range(len(content)), chosen.choice([1, 1, 2, 5])):
                damaged[position] ^= 1 << chosen.randrange(8)
            (folder / name).write_bytes(damaged)
            assert outcome(folder, name, caplog) in ("refused", "told")
            (folder / name).write_bytes(content)


def test_flipped_bits_where_what_had_failed_runs_again(inline: Connection, whole: Path, folder: Path):
    chosen = random.Random(17)
    for name in names_of(whole):
        for _ in range(6):
            damaged = bytearray((whole / name).read_bytes())
            for position in chosen.sample(range(len(damaged)), chosen.choice([1, 2, 5])):
                damaged[position] ^= 1 << chosen.randrange(8)
            (folder / name).write_bytes(damaged)
            again = chain(folder, retry_failed=True)
            found, told_so = refused(again)
            if told_so is None:
                assert (found, [error.element for error in again.errors]) == (RESULTS, [3, 8, 13, 18, 23])
                assert list(chain(folder)) == RESULTS
            else:
                assert re.match(f"the checkpoint {str(folder)!r} .*{name}.*: .*delete the folder", told_so)
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)


def test_cut_short_empty_or_longer(
    inline: Connection, whole: Path, folder: Path, caplog: pytest.LogCaptureFixture
):
    chosen = random.Random(15)
    for name in names_of(whole):
        content = (whole / name).read_bytes()
        cuts = [content[:length] for length in (0, 1, *chosen.sample(range(len(content)), 12))]
        for damaged in (*cuts, content + b"\n", content * 2, content[1:], bytes(len(content)), content[::-1]):
            (folder / name).write_bytes(damaged)
            assert outcome(folder, name, caplog) in ("refused", "told")
            (folder / name).write_bytes(content)


def test_one_file_in_the_place_of_another(
    inline: Connection, whole: Path, folder: Path, caplog: pytest.LogCaptureFixture
):
    for name in names_of(whole):
        content = (whole / name).read_bytes()
        for other in names_of(whole):
            (folder / name).write_bytes((whole / other).read_bytes())
            found = outcome(folder, name, caplog)
            assert found in ("refused", "told") or (name == other and found == "as before")
            (folder / name).write_bytes(content)


DUPLICATES = [
    (CHAIN, b'{\n "format": 4,', b'{\n "format": 2,\n "format": 4,'),
    (CHAIN, b'{\n "format": 4,', b'{\n "format": 4,\n "format": 2,'),
    (CHAIN, b' "length": 24', b' "length": 24,\n "length": null'),
    (END, b' "elements": 24', b' "elements": 24,\n "elements": 25'),
]


@pytest.mark.parametrize(("name", "old", "new"), DUPLICATES)
def test_a_name_that_occurs_twice(inline: Connection, folder: Path, name: str, old: bytes, new: bytes):
    content = (folder / name).read_bytes()
    assert content.count(old) == 1
    (folder / name).write_bytes(content.replace(old, new))
    with pytest.raises(
        CheckpointError, match=f"is damaged: {name} is not what was written: restore what was"
    ):
        list(chain(folder))


PLANTED: list[tuple[str, Callable[[Path], None]]] = [
    ("a folder", Path.mkdir),
    ("a folder that is not empty", lambda path: (path / "in").mkdir(parents=True)),
    ("a pipe without a writer", os.mkfifo),
    ("a device that has no end", lambda path: path.symlink_to("/dev/zero")),
]


@pytest.mark.parametrize(("what", "plant"), PLANTED, ids=[what for what, _ in PLANTED])
def test_what_is_no_file(inline: Connection, folder: Path, what: str, plant: Callable[[Path], None]):
    for name in names_of(folder):
        (folder / name).rename(folder / "kept")
        plant(folder / name)
        remedy = "remove it to run its elements again" if name.endswith(".piece") else "put it back as it was"
        with pytest.raises(
            CheckpointError, match=f"is damaged: {name} is not a file: {remedy}, or delete the"
        ):
            list(chain(folder))
        shutil.rmtree(folder / name) if "folder" in what else (folder / name).unlink()
        (folder / "kept").rename(folder / name)
    assert list(chain(folder)) == RESULTS


def test_a_folder_in_the_place_of_a_file_elsewhere(inline: Connection, tmp_path: Path):
    import fsspec

    system = fsspec.filesystem("memory")
    url = f"memory://{tmp_path}/run"
    assert list(chain(url)) == RESULTS
    for name in [path.rpartition("/")[2] for path in system.ls(url, detail=False)]:
        content = system.cat_file(f"{url}/{name}")
        system.rm_file(f"{url}/{name}")
        system.mkdir(f"{url}/{name}")
        with pytest.raises(CheckpointError, match=f"is damaged: {name} is not a file"):
            list(chain(url))
        system.rmdir(f"{url}/{name}")
        system.pipe_file(f"{url}/{name}", content)
    assert list(chain(url)) == RESULTS


def test_a_link_that_leads_nowhere_or_round(inline: Connection, folder: Path):
    for name in names_of(folder):
        (folder / name).rename(folder / "kept")
        for target in (folder / name, folder / "nothing"):
            (folder / name).symlink_to(target)
            with pytest.raises(
                CheckpointError, match=rf"cannot be used: {name} cannot be read \(.*: remove the"
            ):
                list(chain(folder))
            (folder / name).unlink()
        (folder / "kept").rename(folder / name)


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link"])
def test_in_the_place_of_the_lock(inline: Connection, folder: Path, tmp_path: Path, what: str):
    """What a link of somebody else's leads to is not emptied."""
    dear = tmp_path / "dear"
    dear.write_text("mine")
    lock = folder / LOCK
    lock.unlink(missing_ok=True)
    plant = {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a link": lambda path: path.symlink_to(dear)}
    plant[what](lock)
    with pytest.raises(CheckpointError, match=r"cannot be opened: its parcoll\.lock is not a file: rem"):
        list(chain(folder))
    assert dear.read_text() == "mine"


def test_a_link_in_the_place_of_a_file_that_is_being_written(inline: Connection, tmp_path: Path):
    import threading

    dear, folder = tmp_path / "dear", tmp_path / "run"
    dear.write_text("mine")
    folder.mkdir()
    planted = folder / f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}"
    stream = iter(chain(folder))
    next(stream)
    planted.symlink_to(dear)
    assert ["0.5", *stream] == RESULTS
    assert dear.read_text() == "mine"
    assert not planted.is_symlink()
    assert list(chain(folder)) == RESULTS


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_folder_to_which_others_can_write_is_told_once(inline: Connection, tmp_path: Path):
    """They can put pickles there, which are loaded. With a sticky bit too, as in `/tmp` itself."""
    for name, mode, who in [("all", 0o777, "every user of this machine"), ("tmp", 0o1777, "every user")]:
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(mode)
        link = tmp_path / f"link to {name}"
        link.symlink_to(folder)
        with pytest.warns(RuntimeWarning, match=f"^{who}.* can write to the checkpoint '{link}', and who"):
            assert list(chain(link)) == RESULTS
        assert list(chain(link)) == RESULTS


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away"
)
def test_the_folder_of_another_user_is_told(inline: Connection, tmp_path: Path):
    os.chown(tmp_path, 65534, 65534)
    with pytest.warns(RuntimeWarning, match=r"^its owner, the user 65534, can write to the checkpoint"):
        assert list(chain(tmp_path)) == RESULTS


@pytest.mark.parametrize(("umask", "of_folder", "of_files"), [(0o077, 0o700, 0o600), (0o027, 0o750, 0o640)])
def test_a_new_folder_has_the_permissions_of_the_umask(
    inline: Connection, tmp_path: Path, umask: int, of_folder: int, of_files: int
):
    before = os.umask(umask)
    try:
        assert list(chain(tmp_path / "run")) == RESULTS
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == of_folder
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {of_files}
