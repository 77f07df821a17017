"""Stories in which files are written: they are absent or whole, at a death at each step."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disk import DiedError, Disk

from parcoll import ClusterLostError, WorkerLostError
from parcoll.front.into_files import target_at

OLD = ["old"]


class Files:
    """What is at a path, and what may be there."""

    def __init__(self, disk: Disk, several: bool, rows: int, old: int, missing: bool) -> None:
        self._disk = disk
        self._folder = disk.folder / "there" / "missing" if missing else disk.folder / "there"
        self.path = self._folder / ("part-*.txt" if several else "all.txt")
        self._rows = rows if several else None
        (disk.folder / "there").mkdir()
        self.old = [] if missing else OLD * (old if several else min(old, 1))
        for number, line in enumerate(self.old):
            self._named(number).write_text(f"{line}\n")
            disk.lasts(self._named(number).stat())

    def _named(self, number: int) -> Path:
        return self._folder / self.path.name.replace("*", f"{number:05d}")

    def write(self, made: Any) -> Any:
        """Write a collection there."""
        return made.write_text(self.path, rows_per_file=self._rows, overwrite=bool(self.old))

    def there(self) -> list[str] | None:
        """Return the lines that are there; None if there is no file."""
        files = sorted(self._folder.glob("[!.]*")) if self._folder.exists() else []
        texts = [file.read_text() for file in files]
        assert all(text.endswith("\n") or not text for text in texts), f"a file that is not whole: {texts}"
        return [line for text in texts for line in text.splitlines()] if files else None

    def hidden(self) -> list[str]:
        """Return what is there beside them."""
        return [str(found) for found in self._disk.folder.rglob(".parcoll-*")]


def check_there(
    work: Any, at: str, ends: str, there: list[str] | None, old: list[str] | None, expected: tuple[str, Any]
) -> None:
    """Compare the lines that are there with what there was, and with what plain Python makes."""
    new = list(expected[1]) if expected[0] == "returns" else None
    may_be = [new] if ends == "returns" else [old] if ends in ("raises", "is lost") else [old, new]
    if ends == "raises":
        assert expected[0] == "raises", "it raised an error that is not plain Python's"
    if not work.ordered and there is not None and there != old:
        there, may_be = sorted(there), [None if lines is None else sorted(lines) for lines in may_be]
    assert there in may_be, f"after {ends}, at {at}, there is {there}, and not {may_be}"


def outcome_of(work: Any, make: Callable[[], Any], expected: tuple[str, Any]) -> tuple[str, Any]:
    """Write, with what happens to the disk; look at what is there; write again, and look at that."""
    disk: Disk = work.disk
    files: Files = work.files
    ends: str
    with disk.patched():
        try:
            ends = "returns"
            files.write(make())
        except DiedError:
            ends = "dies"
        except KeyboardInterrupt:
            ends = "is interrupted"
        except (ClusterLostError, WorkerLostError):
            ends = "is lost"
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            ends = "is full"
        except (ValueError, LookupError):
            ends = "raises"
        steps = disk.steps
        assert ends in ("dies", "is full") or not files.hidden(), f"after {ends}, there is {files.hidden()}"
        disk.revive()
        target_at(files.path, True, None, "the next run").check()  # which ends what was begun
        check_there(work, f"{steps} steps", ends, files.there(), files.old or None, expected)
        assert not files.hidden(), f"after {ends}, there is still {files.hidden()}"
        if expected[0] == "raises":
            return expected
        files.old = files.old or OLD  # replaced from now on
        try:
            files.write(make())
        except ClusterLostError:
            return "is lost", None
        except WorkerLostError:
            return "gives up", None
        return "returns", files.there()
