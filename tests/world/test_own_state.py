"""What notes the imports of a process is in the way of none of them."""

from __future__ import annotations

import subprocess
import sys


def test_the_first_import_noted_may_be_that_of_python_s_own_tables() -> None:
    """Python 3.13 imports a module while it fills the table that tells which modules are the user's own."""
    script = """
import sys
from parcoll.world.own_state import watch_imports
watch_imports()
import json.tool, sysconfig
assert sysconfig.get_path("stdlib")
from parcoll.wire.own_modules import is_own_spec
assert not is_own_spec(json.tool.__spec__)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
