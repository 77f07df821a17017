"""What users write, and the types they get. Checked by mypy and pyright; never run.

`# type: ignore[...]` marks what must be an error: both checkers report an ignore without one.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard, assert_type

from dask.bag import Bag

from parcoll import (
    Broadcast,
    CheckpointFailure,
    CheckpointInfo,
    ElementError,
    ParallelGen,
    PerWorker,
    Written,
    broadcast,
    checkpoint_info,
    connect,
    dashboard_link,
    parallel,
    per_worker,
    progress,
    read_archive,
    read_csv,
    read_files,
    read_jsonl,
    read_parquet,
    read_text,
)


def count_up() -> Iterator[int]:
    yield from range(3)


def generate() -> Iterator[str]:
    yield "a"


def half(x: int) -> float:
    return x / 2


def is_text(x: object) -> TypeGuard[str]:
    return isinstance(x, str)


def count_words(path: Path) -> Counter[str]:
    return Counter(path.read_text().split())


def add_counts(total: Counter[str], counts: Counter[str]) -> Counter[str]:
    return total + counts


def append(items: list[int], x: int) -> list[int]:
    return [*items, x]


def sources(bag: Bag, pairs: dict[str, int], lines: Iterable[bytes]) -> None:
    assert_type(parallel([1, 2]), ParallelGen[int])
    assert_type(parallel(range(3)), ParallelGen[int])
    assert_type(parallel("abc"), ParallelGen[str])
    assert_type(parallel({1.5, 2.5}), ParallelGen[float])
    assert_type(parallel(pairs), ParallelGen[tuple[str, int]])
    assert_type(parallel(lines), ParallelGen[bytes])
    assert_type(parallel(Path().iterdir()), ParallelGen[Path])
    assert_type(parallel(generate()), ParallelGen[str])
    assert_type(parallel(generate), ParallelGen[str])
    assert_type(parallel(lambda: iter([1])), ParallelGen[int])
    assert_type(parallel(parallel([1])), ParallelGen[int])
    assert_type(parallel(bag), ParallelGen[Any])


def text(paths: list[Path]) -> None:
    assert_type(read_text("logs/*.txt"), ParallelGen[str])
    assert_type(read_text(Path("a.txt"), blocksize="64 MiB", encoding="latin-1"), ParallelGen[str])
    assert_type(read_text(paths, files_per_partition=10, name="logs"), ParallelGen[str])
    assert_type(read_text(["s3://a/b.gz"], compression="gzip", storage_options={}), ParallelGen[str])
    assert_type(read_text("a.txt").map(len), ParallelGen[int])
    assert_type(read_text("a.txt", on_error="skip", retries=3, partition_size=10), ParallelGen[str])
    assert_type(read_text("a.txt", include_path=True, checkpoint="run"), ParallelGen[tuple[str, str]])
    assert_type(read_jsonl(paths, blocksize=2**20), ParallelGen[Any])
    assert_type(read_csv("a.csv", delimiter=";", timeout=60), ParallelGen[dict[str, str]])
    assert_type(read_csv("a.csv", include_path=True), ParallelGen[tuple[dict[str, str], str]])
    assert_type(read_parquet("a.parquet", columns=["x"], progress=True), ParallelGen[dict[str, Any]])
    read_parquet("a.parquet", batch_rows=1000).map(lambda batch: batch.num_rows)
    assert_type(read_files("folder"), ParallelGen[tuple[str, bytes]])
    assert_type(read_files("folder", mode="r", encoding="latin-1"), ParallelGen[tuple[str, str]])
    assert_type(read_archive("a.zip", "*.json"), ParallelGen[tuple[str, bytes]])


def options() -> None:
    assert_type(parallel([1], partition_size=100), ParallelGen[int])
    assert_type(parallel([1], buffersize=100), ParallelGen[int])
    parallel([1], buffersize="100")  # type: ignore[call-overload]
    assert_type(parallel([1], partition_size="auto", name="numbers"), ParallelGen[int])
    assert_type(parallel([1], client=None), ParallelGen[int])


def steps(numbers: ParallelGen[int]) -> None:
    assert_type(numbers.map(half), ParallelGen[float])
    assert_type(numbers.map(str), ParallelGen[str])
    assert_type(numbers.map(lambda x: (x, str(x))), ParallelGen[tuple[int, str]])
    assert_type(numbers.filter(lambda x: x > 1), ParallelGen[int])
    assert_type(numbers.flatmap(range), ParallelGen[int])
    assert_type(numbers.flatmap(lambda x: [str(x)] * x), ParallelGen[str])
    assert_type(numbers.unordered(), ParallelGen[int])
    assert_type(numbers.map(half).filter(bool).map(str).unordered(), ParallelGen[str])


async def fetch(x: int) -> bytes:
    return str(x).encode()


async def is_known(x: int) -> bool:
    return x > 1


async def lines_of(x: int) -> AsyncIterator[str]:
    yield str(x)


async def all_lines_of(x: int) -> list[str]:
    return [str(x)]


class Client:
    async def __call__(self, x: int) -> float:
        return x / 2


def waiting(numbers: ParallelGen[int]) -> None:
    assert_type(numbers.map(half, concurrency=50), ParallelGen[float])
    assert_type(numbers.map(half, concurrency=50, rate=(10, 1.0), on_error="skip"), ParallelGen[float])
    assert_type(numbers.map(fetch), ParallelGen[bytes])
    assert_type(numbers.map(fetch, on_error=index_of, timeout=5), ParallelGen[bytes | str])
    assert_type(numbers.map(Client()), ParallelGen[float])
    assert_type(numbers.map(Client().__call__, rate=(1, 60)), ParallelGen[float])
    assert_type(numbers.filter(is_known), ParallelGen[int])
    assert_type(numbers.filter(is_known, on_error=index_of), ParallelGen[int | str])
    assert_type(numbers.flatmap(lines_of), ParallelGen[str])
    assert_type(numbers.flatmap(all_lines_of, concurrency=5), ParallelGen[str])
    assert_type(numbers.flatmap(lines_of, on_error=index_of), ParallelGen[str])
    numbers.foreach(fetch, concurrency=3)
    numbers.map(half, concurrency="50")  # type: ignore[call-overload]
    numbers.map(half, rate=10)  # type: ignore[call-overload]


async def looping(numbers: ParallelGen[int]) -> None:
    async for number in numbers.map(half):
        assert_type(number, float)
    stream = aiter(numbers)
    assert_type(await anext(stream), int)
    await stream.aclose()


def narrowing(
    numbers: ParallelGen[int], gaps: ParallelGen[int | None], mixed: ParallelGen[int | str]
) -> None:
    assert_type(numbers.filter(None), ParallelGen[int])
    assert_type(gaps.filter(None), ParallelGen[int])
    assert_type(mixed.filter(is_text), ParallelGen[str])


def index_of(error: ElementError) -> str:
    return f"{error.index}, {error.attempts}"


def temporary(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == 11


def failing(numbers: ParallelGen[int], mixed: ParallelGen[int | str], gaps: ParallelGen[int | None]) -> None:
    assert_type(parallel([1], on_error="skip", retries=3, retry_on=OSError), ParallelGen[int])
    assert_type(parallel([1], on_error=index_of), ParallelGen[int])
    assert_type(numbers.map(half, on_error="skip"), ParallelGen[float])
    assert_type(numbers.map(half, on_error=index_of), ParallelGen[float | str])
    assert_type(numbers.map(half, on_error=lambda error: None), ParallelGen[float | None])
    assert_type(numbers.map(half, retries=2, retry_on=(OSError, ValueError)), ParallelGen[float])
    assert_type(numbers.map(half, retries=2, retry_on=OSError | ValueError), ParallelGen[float])
    assert_type(numbers.map(half, retries=2, retry_on=temporary), ParallelGen[float])
    assert_type(numbers.filter(half, on_error="skip"), ParallelGen[int])
    assert_type(numbers.filter(half, on_error=index_of), ParallelGen[int | str])
    assert_type(mixed.filter(is_text, on_error=lambda error: 1.5), ParallelGen[str | float])
    assert_type(gaps.filter(None, on_error="raise"), ParallelGen[int])
    assert_type(numbers.flatmap(range, on_error="skip"), ParallelGen[int])
    assert_type(numbers.flatmap(range, on_error=index_of, retries=1), ParallelGen[int | str])
    assert_type(numbers.foreach(print, on_error="skip", retries=1), None)
    assert_type(numbers.errors, list[ElementError])
    assert_type(numbers.errors[0].exception, Exception)
    assert_type(numbers.stats.failed, int)


def evaluation(numbers: ParallelGen[int], words: ParallelGen[str]) -> None:
    assert_type(list(numbers), list[int])
    assert_type(iter(words), Iterator[str])
    assert_type([word.upper() for word in words], list[str])
    assert_type(numbers.take(3), list[int])
    assert_type(numbers.first(), int)
    assert_type(numbers.first(None), int | None)
    assert_type(numbers.first("none"), int | str)
    assert_type(numbers.count(), int)
    assert_type(numbers.foreach(print), None)
    assert_type(numbers.map(str).persist(), ParallelGen[str])


def reductions(numbers: ParallelGen[int], words: ParallelGen[str]) -> None:
    assert_type(numbers.reduce(lambda a, b: a + b), int)
    assert_type(words.reduce(operator.add), str)
    assert_type(words.reduce(lambda total, word: total + len(word), 0), int)
    empty: list[int] = []
    assert_type(numbers.reduce(append, empty), list[int])


def folds(numbers: ParallelGen[int], words: ParallelGen[str], paths: Sequence[Path]) -> None:
    assert_type(numbers.fold(lambda a, b: a + b, 0), int)
    empty: list[int] = []
    assert_type(numbers.fold(append, empty, operator.add), list[int])
    assert_type(words.fold(lambda n, word: n + len(word), 0, lambda a, b: a + b), int)
    assert_type(words.fold(lambda n, word: n + len(word), 0, combine=operator.add), int)
    totals: Counter[str] = Counter()
    assert_type(parallel(paths).map(count_words).fold(add_counts, totals), Counter[str])


def attributes(numbers: ParallelGen[int]) -> None:
    assert_type(numbers.bag, Bag)
    assert_type(numbers.stats.verdict, str)
    assert_type([step.seconds for step in numbers.stats.steps], list[float])
    assert_type(numbers.stats.total, int | None)
    assert_type(str(numbers.explain()), str)


def watching() -> None:
    assert_type(parallel([1], progress=True), ParallelGen[int])
    assert_type(parallel([1], progress="label"), ParallelGen[int])
    progress(True)
    with progress():
        pass


def connections() -> None:
    with connect() as cluster:
        assert_type(cluster.address, str)
        assert_type(cluster.dashboard_link, str | None)
    assert_type(dashboard_link(), str | None)
    with connect("tls://scheduler:8786"):
        assert_type(parallel([1]).map(str).first(), str)
    with connect(None, n_workers=2):
        pass
    with connect("tls://scheduler:8786", scratch="s3://bucket/tmp"):
        pass
    connection = connect("inline")
    assert_type(connection.close(), None)


def checkpoints() -> None:
    assert_type(parallel([1], checkpoint=Path("run"), retry_failed=True).map(half), ParallelGen[float])
    assert_type(checkpoint_info(Path("run")), CheckpointInfo)
    assert_type(checkpoint_info("s3://bucket/run").failures[0], CheckpointFailure)


def mistakes(numbers: ParallelGen[int], words: ParallelGen[str]) -> None:
    parallel(3)  # type: ignore[call-overload]
    parallel([1], 100)  # type: ignore[call-overload]
    parallel([1], partition_sizes=100)  # type: ignore[call-overload]
    parallel([1], progress=1.5)  # type: ignore[call-overload]
    parallel([1], checkpoint="run", retry_failed=None)  # type: ignore[call-overload]
    checkpoint_info(1)  # type: ignore[arg-type]
    parallel([1], checkpoint=1)  # type: ignore[call-overload]
    progress("label")  # type: ignore[arg-type]
    words.map(half)  # type: ignore[arg-type]
    numbers.map(half, on_error="ignore")  # type: ignore[call-overload]
    numbers.map(half, on_error=len)  # type: ignore[arg-type]
    numbers.map(half, retries="3")  # type: ignore[call-overload]
    numbers.flatmap(half)  # type: ignore[arg-type]
    numbers.take("3")  # type: ignore[arg-type]
    read_text(3)  # type: ignore[call-overload]
    read_text("a.txt", chunksize=10)  # type: ignore[call-overload]
    read_files("folder", mode="w")  # type: ignore[call-overload]


def halves(batch: list[int]) -> list[float]:
    return [x / 2 for x in batch]


def batches() -> None:
    numbers = parallel([1, 2])
    assert_type(numbers.map_batches(halves), ParallelGen[float])
    assert_type(numbers.map_batches(halves, "auto", retries=1, flat=True), ParallelGen[float])
    assert_type(numbers.map_batches(halves, 10, on_error=lambda error: "?"), ParallelGen[float | str])
    assert_type(numbers.map_batches(lambda array: array, format="numpy"), ParallelGen[Any])
    assert_type(numbers.batched(3), ParallelGen[tuple[int, ...]])
    assert_type(numbers.batched(3).map(sum), ParallelGen[int])
    assert_type(numbers.count_by(), Counter[int])
    assert_type(numbers.count_by(str), Counter[str])
    assert_type(numbers.group_by(str), ParallelGen[tuple[str, list[int]]])
    assert_type(numbers.fold_by(str, lambda n, x: n + x, 0.5), ParallelGen[tuple[str, float]])
    assert_type(numbers.distinct(str), ParallelGen[int])
    assert_type(numbers.sorted(str, reverse=True, on_error="skip"), ParallelGen[int])
    numbers.group_by(3)  # type: ignore[arg-type]
    numbers.map_batches(halves, format="csv")  # type: ignore[call-overload]
    numbers.map_batches(half)  # type: ignore[arg-type]


def added(total: str, x: int) -> str:
    return total + str(x)


def streams(names: dict[int, str]) -> None:
    numbers = parallel([1, 2])
    words = parallel(["a"])
    assert_type(numbers.enumerate(1), ParallelGen[tuple[int, int]])
    assert_type(words.zip(numbers), ParallelGen[tuple[str, int]])
    assert_type(words.zip(numbers, b"ab"), ParallelGen[tuple[str, int, int]])
    assert_type(words.zip(numbers, [1.5], names), ParallelGen[tuple[str, int, float, int]])
    assert_type(words.zip(), ParallelGen[tuple[str]])
    assert_type(words.zip(words, words, words, words, strict=True), ParallelGen[tuple[Any, ...]])
    assert_type(words.chain(numbers, [3]), ParallelGen[str | int])
    assert_type(numbers.pairwise(), ParallelGen[tuple[int, int]])
    assert_type(numbers.scan(operator.add), ParallelGen[int])
    assert_type(numbers.scan(added, ""), ParallelGen[str])
    assert_type(words.take_while(str.isalpha).drop_while(str.isupper, retries=1), ParallelGen[str])
    assert_type(words.take_while(str.isalpha, on_error=lambda error: 1), ParallelGen[str | int])
    assert_type(numbers.skip(1).sample(0.5, seed=1), ParallelGen[int])
    assert_type(words.zip(numbers).starmap(added, concurrency=2), ParallelGen[str])
    assert_type(words.zip(numbers).starmap(added, on_error=lambda error: 1), ParallelGen[str | int])
    assert_type(words.join(numbers, len, half), ParallelGen[tuple[str, int]])
    assert_type(words.join(numbers, len, half, how="left"), ParallelGen[tuple[str, int | None]])
    assert_type(words.join(numbers, len, half, how="anti"), ParallelGen[str])
    words.join(numbers, half)  # type: ignore[arg-type]
    words.join(numbers, len, how="outer")  # type: ignore[call-overload]
    words.take_while(half)  # type: ignore[arg-type]
    numbers.skip("1")  # type: ignore[arg-type]
    numbers.zip(3)  # type: ignore[call-overload]


def values() -> None:
    words = parallel(["a"])
    assert_type(words.min(), str)
    assert_type(words.max(len, retries=1), str)
    assert_type(words.max(default=None), str | None)
    assert_type(words.nlargest(2, key=len), list[str])
    assert_type(words.nsmallest(2), list[str])
    assert_type(words.map(len).sum(), int)
    assert_type(words.map(len).sum(0.5), int | float)
    words.min(half)  # type: ignore[arg-type]
    words.nlargest()  # type: ignore[call-arg]


def per_workers() -> None:
    @per_worker
    def model() -> dict[int, str]:
        return {}

    @per_worker(scope="thread")
    def connection() -> Iterator[bytes]:
        yield b""

    @per_worker
    def session() -> Generator[str, None, None]:
        yield ""

    @per_worker
    async def client() -> AsyncIterator[bytes]:
        yield b""

    async def ask(n: int) -> bytes:
        return await client()

    assert_type(client, PerWorker[Awaitable[bytes]])
    assert_type(list(parallel([1]).map(ask)), list[bytes])
    assert_type(model, PerWorker[dict[int, str]])
    assert_type(connection, PerWorker[bytes])
    assert_type(session(), str)
    assert_type(list(parallel([1]).map(lambda n: model()[n])), list[str])
    assert_type(per_worker(lambda: 3), PerWorker[int])
    model.close()
    per_worker(len)  # type: ignore[arg-type]
    per_worker(scope="worker")  # type: ignore[call-overload]


def broadcasts() -> None:
    names = broadcast({1: "one"})
    assert_type(names, Broadcast[dict[int, str]])
    assert_type(list(parallel([1]).map(lambda n: names.value[n])), list[str])


def files() -> None:
    rows = parallel([{"x": 1}])
    assert_type(rows.write_jsonl("out.jsonl", default=str), Written)
    assert_type(rows.write_csv(Path("out-*.csv"), columns=["x"], rows_per_file=10).files, list[str])
    written = parallel("ab").write_text("out.txt.gz", end="", bytes_per_file="1 MiB", overwrite=True)
    assert_type(written.rows, int)
    rows.write_parquet("out.parquet", compression="zstd", storage_options={"anon": True})
    rows.write_jsonl(3)  # type: ignore[arg-type]
