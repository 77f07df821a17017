"""A first look at an installed parcoll, with nothing but what it needs: `nox -s release` runs it."""

import importlib.metadata
import tempfile
from pathlib import Path

import parcoll
from parcoll import connect, parallel, read_jsonl


def square(n: int) -> int:
    return n * n


def main() -> None:
    assert importlib.metadata.version("parcoll") == parcoll.__version__
    assert "site-packages" in parcoll.__file__, parcoll.__file__
    assert all(hasattr(parcoll, name) for name in parcoll.__all__)
    with tempfile.TemporaryDirectory() as name, connect(n_workers=2):
        numbers = parallel(range(1000), checkpoint=f"{name}/run").map(square)
        assert numbers.sum() == sum(map(square, range(1000)))
        assert list(numbers) == [square(n) for n in range(1000)]
        failing = parallel(["1", "x"], on_error="skip", timeout=60).map(int)
        assert (list(failing), failing.stats.failed) == ([1], 1)
        rows = parallel(range(10)).map(lambda n: {"n": n})
        assert rows.write_jsonl(Path(name, "rows.jsonl")).rows == 10
        assert read_jsonl(f"{name}/rows.jsonl").count_by(lambda row: row["n"] % 2) == {0: 5, 1: 5}
    print(f"parcoll {parcoll.__version__} works")


if __name__ == "__main__":
    main()
