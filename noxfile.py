"""What is run on this project: `nox` for lint, types and tests; `nox -l` for the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")


def pythons() -> list[str]:
    """Return the versions of Python that parcoll is for and that this machine has, the oldest first."""
    # Behind the others, so that no other command changes: nox's own Python, and all those that pyenv keeps,
    # whose commands run only those of them that somebody has chosen.
    more = [Path(sys.executable).parent]
    root = os.environ.get("PYENV_ROOT")
    if root is None and (pyenv := shutil.which("pyenv")):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
    more += sorted(Path(root, "versions").glob("*/bin")) if root else []
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, more)])
    found = [version for version in ("3.11", "3.12", "3.13", "3.14") if is_here(version)]
    return found or [f"{sys.version_info.major}.{sys.version_info.minor}"]


def is_here(version: str) -> bool:
    """Tell whether some Python of that version runs: pyenv has commands for some that do not."""
    commands = [Path(folder, f"python{version}") for folder in os.environ["PATH"].split(os.pathsep)]
    found = [command for command in commands if os.access(command, os.X_OK)]
    return any(subprocess.run([command, "-c", ""], capture_output=True).returncode == 0 for command in found)


PYTHONS = pythons()
# Most tests wait more than they compute: one process more than a small machine has cores. Each takes whole
# files, since tests of one file share clusters.
SHARED_OUT = ("-n", "3", "--dist", "loadscope", "--no-loadscope-reorder")

nox.needs_version = ">=2025.2.9"
# Both ends of what parcoll is for: the oldest Python with the oldest dask, and the newest with the newest.
nox.options.sessions = ["lint", "docs", "types", "oldest", "newest", "guard"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the library with mypy, and what its users see with mypy and pyright."""
    session.install(".", *group("types"))
    session.run("mypy", "src/parcoll")
    session.run("mypy", "tests/typing")
    session.run("pyright", "tests/typing")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Test the built wheel, or what is named: `nox -s tests-3.11 -- tests/promises/test_sources.py -x`."""
    run_tests(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Test it with the oldest Python that is here, and the oldest of each library that is allowed."""
    pins = (pin.replace(">=", "==") for pin in PYPROJECT["project"]["dependencies"])
    # A machine with one Python runs all of them with it.
    run_tests(session, *pins, chosen="not slow and not newest" if len(PYTHONS) > 1 else "not slow")


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Test it with the newest Python that is here, but for what does not depend on Python's version."""
    run_tests(session, *group("stores"), *group("libraries"), chosen="not slow and not failing and not alike")


def run_tests(session: nox.Session, *more: str, chosen: str = "not slow") -> None:
    """Run the tests: together, and those that fail once more, alone. `more` is installed beside."""
    wheel = build_wheel(session)
    session.install(f"{wheel}[dashboard]", *more, *group("test"))
    # pip keeps an installed 0.1.0 when asked for another 0.1.0, so a reused environment
    # would test yesterday's code.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    compile_packages(session)
    # With the src layout nothing here is importable as parcoll except the installed wheel.
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("pytest", "--doctest-modules", "--pyargs", "parcoll")
    # Exit code 1: tests failed, which run once more, alone (5: none did). tests/README.md says why.
    session.run("pytest", "tests", "-m", chosen, "--cache-clear", *SHARED_OUT, success_codes=[0, 1])
    session.run("pytest", "tests", "--last-failed", "--last-failed-no-failures=none", success_codes=[0, 5])


@nox.session
def slow(session: nox.Session) -> None:
    """Run the cases that wait long for what others of the same test show too."""
    session.install(".[dashboard]", *group("test"), *group("stores"))
    compile_packages(session)
    session.run("pytest", "tests", "-m", "slow", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill random processes of a cluster for ten minutes: `nox -s chaos -- --seconds 600 --seed 7`."""
    session.install(".", *group("test"))
    compile_packages(session)
    session.run("python", "tests/faults/chaos.py", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Run evaluations on a model of dask, from fresh numbers: `nox -s simulate -- --seconds 3600`."""
    session.install(".", *group("test"))
    compile_packages(session)
    session.run("python", "tests/simulation/simulate.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of the documents, into `docs/_build`; each warning is an error."""
    session.install(*group("docs"))
    command = ("python", "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html")
    session.run(*command, *session.posargs, "docs", "docs/_build", env={"PYTHONPATH": "src"})


@nox.session
def release(session: nox.Session) -> None:
    """Build the packages twice, look at what they hold, and try each on each Python that is here."""
    session.install(*group("release"))
    when = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True, log=False) or ""
    environment = {"SOURCE_DATE_EPOCH": when.strip()}
    folder = Path(session.create_tmp())
    for copy in ("first", "second"):
        shutil.rmtree(folder / copy, ignore_errors=True)
        build = ("python", "-m", "build", "--no-isolation", "--outdir", str(folder / copy))
        session.run(*build, env=environment, silent=True)
    packages = sorted((folder / "first").iterdir())
    for package in packages:
        if package.read_bytes() != (folder / "second" / package.name).read_bytes():
            session.error(f"{package.name} is not the same when it is built again")
    session.run("twine", "check", "--strict", *map(str, packages))
    session.run("python", ".ci/packages.py", *map(str, packages))
    for version in PYTHONS:
        for package in packages:
            place = folder / f"try-{version}"
            session.run(f"python{version}", "-m", "venv", "--clear", str(place), external=True)
            python = str(place / "bin" / "python")
            session.run(python, "-m", "pip", "install", "-q", str(package), external=True)
            # From a folder in which there is no parcoll, and without the variables of this session.
            smoke = str(Path("tests/helpers/smoke.py").resolve())
            session.run(python, "-P", smoke, external=True, env={"PYTHONPATH": None})
    shutil.rmtree("dist", ignore_errors=True)
    shutil.copytree(folder / "first", "dist")


@nox.session
def mutate(session: nox.Session) -> None:
    """Change functions, one at a time: `nox -s mutate -- evaluation/window.py --seconds 600`."""
    session.install(".", *group("test"))
    compile_packages(session)
    session.run("python", "tests/simulation/mutants.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Count words with the dashboard on: `nox -s demo -- FOLDER --pattern '*.txt' --top 10`."""
    session.install(".[dashboard]")
    compile_packages(session)
    session.run("python", "examples/word_count.py", *session.posargs)


@nox.session
def guard(session: nox.Session) -> None:
    """Run a hundredth of the benchmarks, whose answers must be right; times are not looked at."""
    session.install(".", *group("guard"))
    compile_packages(session)
    session.run("python", "benchmarks", "--small")


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with what people use now: `nox -s bench -- --questions overhead --runs 3 --output docs`."""
    session.install(".[dashboard]", *group("bench"))
    compile_packages(session)
    session.run("python", "benchmarks", *session.posargs)


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group, which older pips cannot read themselves."""
    return nox.project.dependency_groups(PYPROJECT, name)


def build_wheel(session: nox.Session) -> Path:
    """Return the wheel built from this checkout."""
    folder = session.cache_dir / "wheel"  # not create_tmp(), which moves the tests' TMPDIR too
    session.run_install("pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), ".")
    return max(folder.glob("parcoll-*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def compile_packages(session: nox.Session) -> None:
    """Compile what is installed, and let this session's processes keep bytecode.

    Each script starts several processes that import dask. Without cached bytecode those imports
    take three times as long, and there is none when PYTHONDONTWRITEBYTECODE is set or when the
    installer does not compile. Done once: later calls find the cache and skip.
    """
    session.env["PYTHONDONTWRITEBYTECODE"] = None
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = session.run_install("python", "-c", code, silent=True, log=False)
    if packages is not None:  # None when installing is switched off
        # Exit code 1: some package ships a file that is not valid Python, which is its business.
        command = ("python", "-m", "compileall", "-q", "-j", "0", packages.strip())
        session.run_install(*command, silent=True, log=False, success_codes=[0, 1])
