"""Looks at built packages: `python .ci/packages.py WHEEL SDIST`. Ends with what is wrong, if anything is."""

from __future__ import annotations

import email
import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_SDIST = (
    "pyproject.toml",
    "noxfile.py",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/index.md",
    "tests/conftest.py",
)
UNWANTED = re.compile(r"(^|/)(__pycache__|_build|\.nox|\.venv|\.git)/|\.pyc$|\.sqlite$|\.db$")


def version() -> str:
    """Return the version that the source says."""
    (found,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "src/parcoll/__init__.py").read_text(), re.M)
    return str(found)


def wrong_with(metadata: str) -> list[str]:
    """Return what is wrong with the metadata of either package."""
    found = email.message_from_string(metadata)
    wrong = []
    for name, wanted in (("Name", "parcoll"), ("Version", version()), ("License-Expression", "BSD-3-Clause")):
        if found[name] != wanted:
            wrong.append(f"{name} is {found[name]}, not {wanted}")
    if found.get_all("License-File") != ["LICENSE"]:
        wrong.append(f"licence files are {found.get_all('License-File')}")
    for name in ("Summary", "Requires-Python", "Keywords", "Author", "Description-Content-Type"):
        if not found[name]:
            wrong.append(f"{name} is missing")
    if not str(found.get_payload()).startswith("# parcoll"):
        wrong.append("the description is not the README")
    return wrong


def wrong_with_wheel(path: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        wrong = wrong_with(wheel.read(metadata).decode())
    files = [file for file in (ROOT / "src").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    source = {str(file.relative_to(ROOT / "src")) for file in files}
    has = {name for name in names if ".dist-info/" not in name}
    wrong += [f"the wheel lacks {name}" for name in sorted(source - has)]
    wrong += [f"the wheel has {name}" for name in sorted(has - source)]
    return wrong


def wrong_with_sdist(path: Path) -> list[str]:
    """Return what is wrong with a source package."""
    with tarfile.open(path) as sdist:
        top = f"parcoll-{version()}/"
        names = [member.name.removeprefix(top) for member in sdist.getmembers()]
        metadata = sdist.extractfile(f"{top}PKG-INFO")
        assert metadata is not None
        wrong = wrong_with(metadata.read().decode())
        owners = {(member.uid, member.gid, member.uname) for member in sdist.getmembers()}
    wrong += [f"the sdist lacks {name}" for name in IN_SDIST if name not in names]
    wrong += [f"the sdist has {name}" for name in names if UNWANTED.search(name)]
    return wrong + ([f"files of the sdist belong to {owners}"] if len(owners) > 1 else [])


def main(paths: list[str]) -> int:
    """Print what is wrong with the packages, and return the exit code."""
    wrong = []
    for path in map(Path, paths):
        wrong += wrong_with_wheel(path) if path.suffix == ".whl" else wrong_with_sdist(path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## [{version()}]" not in changes:
        wrong.append(f"CHANGELOG.md says nothing of {version()}")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
