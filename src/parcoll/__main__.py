"""The command line: `python -m parcoll checkpoint FOLDER` says what a checkpoint has."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys

from parcoll import CheckpointError, checkpoint_info


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say, and return the exit code: 2 for what is no checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m parcoll", description="What parcoll has left on disks.")
    commands = parser.add_subparsers(title="commands", dest="command")
    checkpoint = commands.add_parser(
        "checkpoint",
        help="how much a checkpoint has, of what, since when, and what failed",
        description="Tell what the folder of parallel(..., checkpoint=FOLDER) has. Changes nothing there.",
    )
    checkpoint.add_argument("folder", metavar="FOLDER", help="its path, or any URL that fsspec knows")
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 0
    try:
        told = str(checkpoint_info(given.folder))
    except (CheckpointError, TypeError) as error:  # TypeError for an empty name
        print(error, file=sys.stderr)
        return 2
    return _print(told)


def _print(text: str) -> int:
    """Write a text to the standard output, and return the exit code: 1 if that is not possible."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # elements have signs that a terminal may not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else the interpreter tries once more at its end
        if not isinstance(error, BrokenPipeError):  # which means that whoever reads has seen enough
            print(f"the standard output cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
