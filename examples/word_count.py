"""The most frequent words in a folder of text, counted on all cores.

    python examples/word_count.py                                 # Python's own library
    python examples/word_count.py ~/notes --pattern "*.md" --top 10
    DASK_SCHEDULER_ADDRESS=tcp://host:8786 python examples/word_count.py /shared/texts

On another machine's scheduler, the folder must be one that its workers see under the same path.
"""

import argparse
import os
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

from parcoll import connect, parallel, progress

WORD = re.compile(r"[^\W\d_]+")


def count_words(path):
    """Runs on a worker: only the path travels there, and only the counts travel back."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return Counter(WORD.findall(text.lower()))


def add_counts(total, counts):
    """Adds in place: `total + counts` would copy the whole vocabulary for every file."""
    total.update(counts)
    return total


def main():
    options = parse_arguments()
    paths = find_files(options.folder, options.pattern)
    started = time.perf_counter()

    progress()  # a bar, where somebody watches
    # None is a cluster on this machine; an address is a dask scheduler anywhere.
    with connect(os.environ.get("DASK_SCHEDULER_ADDRESS")) as cluster:
        print(f"dashboard: {cluster.dashboard_link}", flush=True)
        words = parallel(paths, name="count words").map(count_words)
        counts = words.fold(add_counts, Counter())

    elapsed = time.perf_counter() - started
    for word, times in counts.most_common(options.top):
        print(f"{times:>10,}  {word}")
    print(f"{counts.total():,} words, {len(counts):,} distinct, in {len(paths):,} files")
    print(f"{elapsed:.1f} s, the start of the cluster included")


def find_files(folder, pattern):
    """Installed packages are left out, so that the default is the same text everywhere."""
    skipped = {"site-packages", "dist-packages"}
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return [path for path in paths if skipped.isdisjoint(path.relative_to(folder).parts)]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Count the words in a folder of text.")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="default: the standard library's sources",
    )
    parser.add_argument("--pattern", default="*.py", help="files to read (default: %(default)s)")
    parser.add_argument("--top", type=int, default=20, help="words to print (default: %(default)s)")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"not a folder: {options.folder}")
    options.folder = options.folder.resolve()  # workers may run in another directory
    return options


main()
