"""What is run on this project: `nox` for lint, types and tests; `nox -l` for the rest."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "guard"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")


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


@nox.session
def tests(session: nox.Session) -> None:
    """Test the built wheel, or what is named: `nox -s tests -- tests/promises/test_sources.py -x`."""
    wheel = build_wheel(session)
    session.install(f"{wheel}[dashboard]", *group("test"))
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
    session.run("pytest", "tests", "--cache-clear", success_codes=[0, 1])
    session.run("pytest", "tests", "--last-failed", "--last-failed-no-failures=none", success_codes=[0, 5])


@nox.session
def slow(session: nox.Session) -> None:
    """Run the cases that wait long for what others of the same test show too."""
    session.install(".[dashboard]", *group("test"))
    compile_packages(session)
    session.run("pytest", "tests", "-m", "slow", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill random processes of a cluster for ten minutes: `nox -s chaos -- --seconds 600 --seed 7`."""
    session.install(".", *group("test"))
    compile_packages(session)
    session.run("python", "tests/faults/chaos.py", *session.posargs)


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
