"""Another wall clock: only root may set the real one, and for all programs.

In each process that has the folder on its path, before anything is imported, `time.time` is made to differ by
as much as a file says.
"""

from __future__ import annotations

import os
from pathlib import Path

CLOCK = """
import time
real = time.time
def shifted():
    try:
        with open({file!r}) as file:
            return real() + float(file.read() or 0)
    except OSError:
        return real()
time.time = shifted
from importlib.machinery import BuiltinImporter
genuine = BuiltinImporter.exec_module
def exec_module(module):  # parcoll makes the clocks of `time` anew
    genuine(module)
    if module.__name__ == "time":
        module.time = shifted
BuiltinImporter.exec_module = exec_module
"""


class WallClock:
    """What the processes of a test take for the wall clock."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "shift"
        self._text = CLOCK.format(file=str(self.file))
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(self._text)

    def here(self) -> None:
        """Have it in this process too, which has not imported who waits by it yet."""
        exec(self._text, {})

    def set(self, seconds: float) -> None:
        """Have it differ by so much from now on."""
        new = self.file.with_name("new")
        new.write_text(str(seconds))
        os.replace(new, self.file)
