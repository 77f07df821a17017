"""What is written is what is read again, also over the files that it is read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parcoll import Connection, parallel, read_csv, read_jsonl, read_text


def record(x: int) -> dict[str, Any]:
    """Make a row."""
    return {"x": x, "text": "é,\n\r" * (x % 3)}


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_rows_come_back(cluster: Connection, tmp_path: Path, ending: str) -> None:
    rows = parallel(range(500)).map(record)
    rows.write_jsonl(tmp_path / f"a-*.jsonl{ending}", rows_per_file=200)
    assert list(read_jsonl(str(tmp_path / f"a-*.jsonl{ending}"))) == list(rows)
    rows.write_csv(tmp_path / f"a.csv{ending}")
    assert list(read_csv(str(tmp_path / f"a.csv{ending}"))) == [row | {"x": str(row["x"])} for row in rows]


def test_over_the_files_that_are_read(cluster: Connection, tmp_path: Path) -> None:
    path = tmp_path / "a-*.txt"
    parallel(range(3000)).map(str).write_text(path, rows_per_file=700)
    for _ in range(2):
        lines = read_text(str(path), blocksize=1000).map(lambda line: line.strip() + "!")
        lines.write_text(path, rows_per_file=1000, overwrite=True)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [f"a-0000{n}.txt" for n in range(3)]
    assert list(read_text(str(path))) == [f"{x}!!\n" for x in range(3000)]
