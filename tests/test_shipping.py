"""Which modules travel: odd files and odd objects beside the script must not stand in an evaluation's way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parcoll.shipping import sources_for


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
