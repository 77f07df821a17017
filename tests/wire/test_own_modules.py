"""Which modules travel: odd files and odd objects beside the script must not stand in an evaluation's way."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from parcoll import SerializationError
from parcoll.wire.own_modules import sources_for
from parcoll.world.takeover import watch_imports


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a package of the user's own, on the path."""
    folder = tmp_path / "odd_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "good.py").write_text("y = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_files_of_a_package_that_cannot_be_read_stay_behind(package: Path) -> None:
    """A link that leads nowhere, as editors leave them; a folder whose name looks like a module's."""
    (package / "dangling.py").symlink_to(package / "nowhere")
    (package / "folder.py").mkdir()
    found = sources_for(abs, ["odd_package"])
    assert sorted(found) == ["odd_package", "odd_package.good"]
    assert found["odd_package.good"].text == "y = 2\n"


class Proxy:
    """As frameworks have them: what it stands for is not there yet."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("working outside of a context")


def test_an_object_of_the_script_that_raises_when_looked_at_is_passed_over(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import odd_package.good

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "odd_proxy", Proxy(), raising=False)
    monkeypatch.setattr(main, "odd_module", odd_package.good, raising=False)
    assert "odd_package.good" in sources_for(abs)


@pytest.mark.parametrize("watched", [False, True])
def test_modules_in_a_zip_file_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    """From a worker too, whose imports are watched."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    if watched:
        watch_imports()
    path = tmp_path / "library.zip"
    texts = {"zipped_one.py": "x = 1\n", "zipped/__init__.py": "y = 2\n", "zipped/below/__init__.py": ""}
    texts["zipped/below/deep.py"] = "z = 3\n"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in texts.items():
            file.writestr(name, text)
    monkeypatch.syspath_prepend(path)
    found = sources_for(abs, ["zipped", "zipped_one"])
    assert {name: (source.is_package, source.text) for name, source in found.items()} == {
        "zipped": (True, "y = 2\n"),
        "zipped.below": (True, ""),
        "zipped.below.deep": (False, "z = 3\n"),
        "zipped_one": (False, "x = 1\n"),
    }


def test_a_module_whose_file_is_gone_is_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is asked for."""
    path = tmp_path / "soon_gone.py"
    path.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("soon_gone")
    path.unlink()
    monkeypatch.setattr(sys.modules["__main__"], "odd_module", module, raising=False)
    assert "soon_gone" not in sources_for(abs)
    with pytest.raises(SerializationError, match=r"the module 'soon_gone' cannot be sent .*No such file"):
        sources_for(abs, ["soon_gone"])


INSTALLED = """
import importlib, json, sys
from parcoll.wire.modules import install

def source(text, is_package=False):
    return is_package, "somewhere.py", text

first = {
    "base": source("KIND = object()"),
    "user": source("from base import KIND"),
    "pack": source("", True),
    "pack.one": source("from user import KIND"),
    "pack.two": source(""),
    "apart": source("KIND = object()"),
}
install(first)
before = {name: importlib.import_module(name) for name in first}

def kept():
    return sorted(name for name in first if importlib.import_module(name) is before[name])

install({"late": source("import base"), "apart": first["apart"]})
print(kept())
install({"apart": source("KIND = 1")})
print(kept())
install(first | {"apart": source("KIND = 1"), "base": source("KIND = 2")})
print(kept(), importlib.import_module("pack.one").KIND)
"""


def test_what_has_changed_and_what_imports_it_is_imported_anew() -> None:
    """And nothing else: an evaluation that runs may have objects of classes of the others."""
    run = subprocess.run([sys.executable, "-c", INSTALLED], capture_output=True, text=True, check=True)
    everything = ["apart", "base", "pack", "pack.one", "pack.two", "user"]
    assert run.stdout.splitlines() == [str(everything), str(everything[1:]), "[] 2"]
