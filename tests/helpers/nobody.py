"""To be a user who may look into what others may, and no further, as only root can."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Be nobody, to whom a test's folder is open, and those around it down to that of this run."""
    for above in (folder, *folder.parents):
        above.chmod(above.stat().st_mode | 0o55)
        if above == Path(tempfile.gettempdir()):
            break
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
