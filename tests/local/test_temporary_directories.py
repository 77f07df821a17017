"""A local cluster has its directory in any temporary directory, whoever else may write there."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from local_hosts import directories
from scripts import clean_environment, import_path

from parcoll.errors import ClusterStartError
from parcoll.local import children
from parcoll.system import others_who_write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
NOBODY = 65534
NAME = re.compile(r"parcoll-[0-9a-f]{16}")


def use(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", os.path.abspath(folder))


def modes(folder: str) -> dict[str, int]:
    return {
        os.path.join(at, name): stat.S_IMODE(os.lstat(os.path.join(at, name)).st_mode)
        for at, folders, files in os.walk(folder)
        for name in folders + files
    }


def test_a_link_to_a_long_path_with_any_letters(
    start: Any, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a socket's path may be: no socket of a cluster has one. The umask does not matter."""
    there = tmp_path.joinpath("a b 'ü\n%s{x}\"$HOME", *["x" * 200] * 2)
    there.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(there)
    use(str(link), monkeypatch)
    before = os.umask(0)
    try:
        client = connect(start(n_workers=1).wait_ready())
        assert client.submit(len, "abc").result(timeout=20) == 3
    finally:
        os.umask(before)
    (directory,) = directories()
    assert NAME.fullmatch(os.path.basename(directory))
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert modes(directory), "of the scheduler and the worker"
    assert there.samefile(Path(directory).parent)


def test_a_relative_one(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    use("here", monkeypatch)
    start(n_workers=1).wait_ready()
    assert len(directories()) == 1


@pytest.mark.parametrize("what", ["missing", "a file", "a dangling link"])
def test_one_that_is_none(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As for Python's own `tempfile`, the next one is used."""
    place = tmp_path / "place"
    if what == "a file":
        place.touch()
    elif what == "a dangling link":
        place.symlink_to(tmp_path / "nothing")
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("TMP", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    process = start(n_workers=1)._process
    assert process.wait_ready(60)["directory"].startswith(str(tmp_path / "tmp"))


def test_a_name_that_is_no_text_is_told(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    use(folder, monkeypatch)
    with pytest.raises(ClusterStartError) as raised:
        start(n_workers=1).wait_ready()
    assert f"the temporary directory {folder!r} cannot be used (its name is no text in UTF-8): name" in str(
        raised.value
    )


def test_what_is_there_already_is_not_taken(tmp_path: Path) -> None:
    """Names cannot be guessed. Were one guessed, what others have put there is neither used nor followed."""
    dear = tmp_path / "dear"
    dear.mkdir()
    link, folder, nowhere = tmp_path / "link", tmp_path / "folder", tmp_path / "nowhere"
    link.symlink_to(dear)
    folder.mkdir(mode=0o777)
    nowhere.symlink_to(tmp_path / "not yet")
    for planted in (link, folder, nowhere):
        with pytest.raises(OSError, match=r"cannot be used \(File exists\): name another one in the env"):
            children.make_directory(str(planted))
    assert not list(dear.iterdir())
    assert not (tmp_path / "not yet").exists()


SCRIPT = """
import json, os, tempfile
from parcoll import ClusterStartError, connect, parallel
def names():
    found = {}
    for top in json.loads(os.environ["PLACES"]):
        found[top] = sorted(os.listdir(top))
    return found
before = names()
try:
    with connect(n_workers=1):
        print(json.dumps([parallel(range(10)).map(abs).reduce(max), tempfile.gettempdir()]))
except ClusterStartError as error:
    print(json.dumps([str(error), None]))
assert names() == before
"""


def run_as_nobody(folder: Path, **environment: str) -> Any:
    """Run the script as another user, who may read everything (this Python too) and write as any user may."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    capability = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability]
    environment = clean_environment(PLACES="[]", HOME=str(folder), PYTHONDONTWRITEBYTECODE="1") | environment
    environment["PYTHONPATH"] = os.pathsep.join(import_path())
    done = subprocess.run(
        [*command, sys.executable, str(script)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "setpriv: " in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@as_root
def test_one_that_this_user_cannot_write_to(tmp_path: Path) -> None:
    """The next one is used; dask's own setting has no next one, and its error says what to do."""
    closed, opened = tmp_path / "closed", tmp_path / "opened"
    closed.mkdir()
    opened.mkdir()
    opened.chmod(0o1777)
    places = {"TMPDIR": str(closed), "TMP": str(opened), "PLACES": json.dumps([str(closed), str(opened)])}
    assert run_as_nobody(tmp_path, **places) == [9, str(opened)]
    said, _ = run_as_nobody(tmp_path, **places, DASK_TEMPORARY_DIRECTORY=str(closed))
    assert f"the temporary directory {str(closed)!r} cannot be used (Permission denied): name another" in said


@as_root
def test_another_user_in_the_temporary_directory(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who owns a folder, or may write to one without a sticky bit, can put others in the place of ours."""
    caplog.set_level(logging.WARNING, "parcoll")
    shared = tmp_path / "shared"
    shared.mkdir()
    use(str(shared), monkeypatch)
    assert others_who_write(str(shared), sticky_helps=True) is None
    for mode, owner, told in [
        (0o1777, 0, None),
        (0o777, 0, "every user of this machine"),
        (0o700, NOBODY, f"its owner, the user {NOBODY},"),
    ]:
        shared.chmod(mode)
        os.chown(shared, owner, owner)
        assert others_who_write(str(shared), sticky_helps=True) == told
        assert others_who_write(str(shared), sticky_helps=False) == (told or "every user of this machine")
    host = start(n_workers=1)
    host.wait_ready()
    host.wait_ready()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"in the temporary directory {str(shared)!r}, its owner, the user {NOBODY}, can replace what the "
        "workers write"
    )
