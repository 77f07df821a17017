"""Into files: an evaluation whose elements are encoded by the workers, and written by this process."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from parcoll.chain.loop import Chain
from parcoll.chain.place import Place, reached
from parcoll.chain.sinks import Sink
from parcoll.errors import ClusterLostError, logger
from parcoll.evaluation.engine import Job
from parcoll.evaluation.run import Run
from parcoll.front import arguments
from parcoll.output.arrow import Arrow
from parcoll.output.encoding import Csv, Encoded, Jsonl, RowFormat, Text
from parcoll.output.objects import RemoteTarget
from parcoll.output.parked import Made, MakesRows, MakesTables, Making, MakingFiles, Plan, Trying
from parcoll.output.placing import URL, LocalTarget, Target
from parcoll.output.rolling import Limits, Rolling, Written
from parcoll.output.sink import Encodes
from parcoll.output.tables import Frames, package
from parcoll.text import describe, line_of, short_repr
from parcoll.watch.recorder import Recorder
from parcoll.wire.payload import Plain
from parcoll.worker.outcome import Outcome
from parcoll.worker.program import Program
from parcoll.worker.tasks import run_elements

BYTES_PER_FILE = 128 << 20
PARQUET_CODECS = ("snappy", "gzip", "brotli", "zstd", "lz4")
LOST = "has written nothing: rows that it had were encoded on that cluster"


class How(NamedTuple):
    """What all methods that write files are told."""

    bytes_per_file: Any
    rows_per_file: Any
    compression: Any
    overwrite: Any
    storage_options: Any


Start = Callable[[], Run]


def write_text(start: Start, path: Any, end: Any, encoding: Any, how: How) -> Written:
    """Write texts."""
    if not isinstance(end, str):
        raise TypeError(f"write_text() needs a str as end, got {describe(end)}")
    try:
        codecs.lookup(encoding)
        end.encode(encoding)
    except (LookupError, TypeError):
        raise ValueError(f"write_text() knows no encoding {short_repr(encoding)}") from None
    except UnicodeError as error:
        raise ValueError(f"write_text(): end={end!r} cannot be encoded: {error}") from None
    return _write_rows(start, "write_text", Text(end, encoding), path, how)


def write_jsonl(start: Start, path: Any, default: Any, timeout: float | None, how: How) -> Written:
    """Write lines of JSON."""
    if default is None:
        return _write_rows(start, "write_jsonl", Jsonl(), path, how)
    default = arguments.function(default, "write_jsonl")
    return _write_rows(start, "write_jsonl", Jsonl(), path, how, default, timeout)


def write_csv(start: Start, path: Any, columns: Any, header: Any, how: How) -> Written:
    """Write rows of CSV."""
    if columns is not None:
        _check_columns(columns)
    if not isinstance(header, bool):
        raise TypeError(f"write_csv() needs True or False as header, got {describe(header)}")
    format = Csv(None if columns is None else tuple(columns), header)
    return _write_rows(start, "write_csv", format, path, how)


def _check_columns(columns: Any) -> None:
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise TypeError(f"write_csv() needs a list of names as columns, got {describe(columns)}")
    for name in columns:
        if isinstance(name, list | dict | set):
            raise TypeError(f"write_csv() needs names as columns, got {describe(name)} among them")
        try:
            str(name).encode()
        except UnicodeError as error:
            raise ValueError(f"write_csv(): the column {name!r} cannot be encoded: {error}") from None
    if not columns or len(set(columns)) != len(columns):
        raise ValueError(
            f"write_csv() needs columns with names of their own, one at least, got {short_repr(columns)}"
        )


def _write_rows(
    start: Start,
    name: str,
    format: RowFormat,
    path: Any,
    how: How,
    default: Any = None,
    timeout: float | None = None,
) -> Written:
    what = f"{name}()"
    target = target_at(path, how.overwrite, how.storage_options, what)
    found = limits(target, how.bytes_per_file, how.rows_per_file, what)
    making = MakesRows(format, os.fspath(path), how.compression)
    making.check()
    format.sized = found.any
    return write(start, Encodes(name, format, default, timeout), target, making, found, name)


def write_parquet(start: Start, path: Any, schema: Any, how: How) -> Written:
    """Write row groups."""
    what = "write_parquet()"
    package("pyarrow.parquet", what)
    known = (*PARQUET_CODECS, "infer", None)
    if not (how.compression is None or isinstance(how.compression, str)) or how.compression not in known:
        wrong = ValueError if isinstance(how.compression, str) else TypeError
        names = ", ".join(map(repr, known))
        raise wrong(f"{what} knows the compressions {names}; got {describe(how.compression)}")
    target = target_at(path, how.overwrite, how.storage_options, what)
    found = limits(target, how.bytes_per_file, how.rows_per_file, what)
    tables = Arrow(what, _schema(schema, what), cut=found.any)
    making = MakesTables(tables, "snappy" if how.compression == "infer" else how.compression)
    return write(start, Encodes("write_parquet", tables), target, making, found, "write_parquet")


def to_arrow(start: Start, schema: Any) -> Any:
    """Return a table of pyarrow."""
    what = "to_arrow()"
    package("pyarrow", what)
    tables = Arrow(what, _schema(schema, what))
    parts = collect(start, Encodes("to_arrow", tables), "to_arrow")
    return tables.joined([part.batch for part in parts])


def to_pandas(start: Start) -> Any:
    """Return a frame of pandas."""
    what = "to_pandas()"
    package("pandas", what)
    tables = Frames(what)
    return tables.joined(collect(start, Encodes("to_pandas", tables), "to_pandas"))


def _schema(given: Any, what: str) -> Any:
    if given is None:
        return None
    if not isinstance(given, package("pyarrow", what).Schema):
        raise TypeError(f"{what} needs a pyarrow.Schema as schema, got {describe(given)}")
    if not given.names or len(set(given.names)) < len(given.names):  # no row of such a table is a dict
        raise ValueError(
            f"{what} needs a schema of columns with names of their own, one at least, got "
            f"{short_repr(given.names)}"
        )
    return given


def target_at(path: Any, overwrite: Any, options: Any, what: str) -> Target:
    """Return where `path` says that files go."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what} needs a path or a URL, got {describe(path)}")
    if not isinstance(overwrite, bool):
        raise TypeError(f"{what}: overwrite must be True or False, got {describe(overwrite)}")
    if options is not None and not (
        isinstance(options, Mapping) and all(isinstance(name, str) for name in options)
    ):
        raise TypeError(f"storage_options must be a mapping with strings as keys, got {describe(options)}")
    path = os.fspath(path)
    if "\0" in path:
        raise ValueError(f"{what} needs a path without null characters, got {short_repr(path)}")
    if path.startswith(("file://", "local://")):
        path = path.partition("://")[2]
    if URL.match(path):
        return RemoteTarget(path, overwrite, what, options or {})
    if options:
        raise ValueError(f"{what}: storage_options are for URLs, and {path!r} is a path on this machine")
    return LocalTarget(path, overwrite, what)


def limits(target: Target, bytes_per_file: Any, rows_per_file: Any, what: str) -> Limits:
    """Return where a file ends."""
    if rows_per_file is not None:
        if bytes_per_file is not None:
            raise ValueError(
                f"{what} takes bytes_per_file or rows_per_file, got both: {short_repr(bytes_per_file)} and "
                f"{short_repr(rows_per_file)}"
            )
        found = Limits(
            rows=arguments.whole_number(rows_per_file, "rows_per_file must be None or a whole number")
        )
    elif bytes_per_file is not None:
        found = Limits(
            bytes=arguments.number_of_bytes(
                bytes_per_file, 'bytes_per_file must be None, a number of bytes, or a text like "64 MiB"'
            )
        )
    else:
        return Limits(bytes=BYTES_PER_FILE) if target.several else Limits()
    if not target.several:
        raise ValueError(
            f"{what}: the path of several files needs a `*` for their numbers, as in 'out/part-*.jsonl'"
        )
    return found


def write(start: Start, sink: Encodes, target: Target, making: Making, limits: Limits, what: str) -> Written:
    """Evaluate, and write all elements."""
    target.check()
    try:
        target.begin()
        run = start()
        with run.watched(what):

            def attempt() -> Written:
                if run.stats.written is not None:  # once more, since the cluster was lost
                    target.begin()
                if isinstance(target, RemoteTarget) and _workers_can(run, target, making):
                    return _by_workers(run, sink, target, making, limits, what)
                rolling = making.rolling(target, limits)
                try:
                    _fill(run, sink, rolling)
                except BaseException:
                    rolling.abandon()
                    raise
                return Written(target.commit(), rolling.rows, rolling.nbytes)

            return run.restarting(what, LOST, attempt)
    finally:
        target.abandon()


def _workers_can(run: Run, target: RemoteTarget, making: Making) -> bool:
    """Tell whether the workers can put files where these go: they may lack a package, or a key."""
    if not target.by_workers or run.gives_elements or run.engine.client is None:
        return False
    try:
        list(run.evaluate([0], Trying(making, target.parking())))
    except ClusterLostError:
        raise
    except Exception as error:
        logger.warning(
            "the workers cannot put files there, so that all go through this process: %s", line_of(error)
        )
        return False
    return True


def _by_workers(
    run: Run, sink: Encodes, target: RemoteTarget, making: Making, limits: Limits, what: str
) -> Written:
    """Have the workers make the files, and put them.

    This process says which rows are a file, and which of the files that were put count.
    """
    recorder = Recorder(run.stats)
    recorder.add_written(0, 0, 0.0)
    parts, files = target.parking(run.engine.of_machine), target.parking()
    plan = Plan(making, limits)
    for encoded in encoded_parts(run, sink.parked_at(parts)):
        for parked in encoded.parts:
            plan.take(parked)
        recorder.add_written(0, 0, 0.0, encoded.seconds)
    planned = [*plan.files(target.names(plan.count))]
    made: list[Made] = []
    rows, nbytes, seconds = 0, 0, 0.0
    for some in (planned[:1], planned[1:]) if not making.alike else (planned,):
        step = MakingFiles(making.settled(made[0] if made else None), parts, files, what)
        for file in run.evaluate(some, step) if some else ():
            made.append(file)
            rows, nbytes, seconds = rows + file.rows, nbytes + file.nbytes, seconds + file.seconds
            recorder.add_written(rows, nbytes, seconds)
    return Written(target.adopt(made), rows, nbytes)


def _fill(run: Run, sink: Sink, rolling: Rolling) -> None:
    recorder = Recorder(run.stats)
    recorder.add_written(0, 0, 0.0)
    for encoded in encoded_parts(run, sink):
        for part in encoded.parts:
            rolling.take(part)
        recorder.add_written(rolling.rows, rolling.nbytes, rolling.seconds, encoded.seconds)
    rolling.end()
    recorder.add_written(rolling.rows, rolling.nbytes, rolling.seconds)


def collect(start: Start, sink: Sink, what: str) -> list[Any]:
    """Evaluate, and return what the workers have made of the partitions, in order."""
    run = start()
    with run.watched(what):

        def attempt() -> list[Any]:
            return [part for encoded in encoded_parts(run, sink) for part in encoded.parts]

        return run.restarting(what, LOST, attempt)


def encoded_parts(run: Run, sink: Sink) -> Iterator[Encoded]:
    """Give what the sink makes of each partition: here, if the elements have to come here."""
    with closing(run.outcomes(sink)) as outcomes:  # type: ignore[type-var]
        for job, outcome in outcomes:
            results, outcome.results = outcome.results, None
            if outcome.failure is not None:
                raise outcome.failure.rebuild()
            if results is None:
                continue
            found = results.load()
            del results
            if not isinstance(
                found, Encoded
            ):  # elements: of a checkpoint, or batches that go through no step
                found = _encoded_here(run, sink, found, job, outcome)
            if found is not None:
                yield found


def _encoded_here(run: Run, sink: Sink, elements: Any, job: Job, outcome: Outcome) -> Encoded | None:
    in_place = outcome.read == len(elements) and not any(step.counts for step in run.plan.steps)
    place: Place = job.place if in_place else reached(job.place)
    made = run_elements(Chain([]), Program((), sink), elements, place, None, Plain.pack)
    if made.failure is not None:
        Recorder(run.stats).add_ended(made)
        raise made.failure.rebuild()
    found: Any = None if made.results is None else made.results.load()
    assert found is None or isinstance(found, Encoded)
    return found
