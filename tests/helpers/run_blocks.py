"""Runs code blocks in this process, each as the `__main__` of a script, and tells what each one printed.

A cluster that one of them has started serves the others.

Called with a folder of numbered files; the answer is JSON, a list of [what was printed, traceback or None].
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def run(script: Path) -> tuple[str, str | None]:
    """Run a script in a folder of its own."""
    folder = script.with_suffix("")
    folder.mkdir()
    os.chdir(folder)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(script), run_name="__main__")
    except Exception:
        return printed.getvalue(), traceback.format_exc()
    return printed.getvalue(), None


if __name__ == "__main__":
    print(json.dumps([run(script) for script in sorted(Path(sys.argv[1]).glob("*.py"))]))
