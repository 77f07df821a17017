"""A scheduler and workers that have dask and nothing else: parcoll and the user's modules travel there."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import forks
import pytest
import yaml
from bare import LACKING, BareCluster, bare_cluster, tls_options
from script_texts import CLASSES, PLUGINS, WORLD
from scripts import Scripts, eventually, wait_for_file

from parcoll import (
    SerializationError,
    connect,
    parallel,
    read_csv,
    read_files,
    read_jsonl,
    read_text,
)
from parcoll.local.credentials import Credentials

EXAMPLE = Path(__file__).parents[2] / "examples" / "word_count.py"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Give a cluster of two one-thread workers."""
    with bare_cluster(tmp_path_factory.mktemp("bare"), 2) as cluster:
        yield cluster


@pytest.mark.parametrize("name", LACKING)
def test_the_environment_lacks_what_it_should(bare: BareCluster, name: str) -> None:
    command = [sys.executable, "-S", "-c", f"import dask, distributed, {name}"]
    ended = subprocess.run(command, env=bare.environment, cwd=bare.folder, capture_output=True, text=True)
    assert f"No module named '{name}'" in ended.stderr


def test_warnings_filters_of_what_workers_lack(bare: BareCluster) -> None:
    with warnings.catch_warnings(), connect(bare.file):
        warnings.filterwarnings("error", "odd", UserWarning)
        warnings.filterwarnings("ignore", category=pytest.importorskip("numpy").exceptions.ComplexWarning)
        with pytest.raises(UserWarning, match="odd"):
            list(parallel([1]).map(lambda _: warnings.warn("odd", stacklevel=1)))


# Calls --------------------------------------------------------------------------------------------


def test_every_call_works(bare: BareCluster) -> None:
    numbers = range(1_000)
    with connect(bare.file):
        assert list(parallel(numbers).map(lambda x: x + 1).filter(lambda x: x % 2)) == list(
            filter(lambda x: x % 2, range(1, 1_001))
        )
        assert list(parallel("abc").flatmap(lambda c: c * 2)) == list("aabbcc")
        assert parallel(numbers).reduce(lambda a, b: a - b) == -sum(numbers)
        assert parallel(numbers).fold(lambda a, b: a + b, 0, lambda a, b: a + b) == sum(numbers)
        assert parallel(numbers).filter(lambda x: x > 900).count() == 99
        assert parallel(iter(numbers)).map(str).take(3) == ["0", "1", "2"]
        assert sorted(parallel(numbers).unordered()) == list(numbers)
        kept = parallel(numbers)
        kept.foreach(lambda x: -x)
        assert (kept.first(), kept.count(), list(kept)[-1]) == (0, 1_000, -999)


def test_what_needs_order_and_other_chains(bare: BareCluster) -> None:
    def within(n: int) -> list[Any]:
        tens = parallel(range(n)).map(lambda x: 10 * x)
        both = tens.zip(tens.skip(1)).join({10: "ten"}, lambda pair: pair[0], lambda item: item[0])
        return [list(both), tens.take_while(lambda x: x < 30).max(lambda x: -x), tens.map(float).sum()]

    expected = [[((10, 20), (10, "ten"))], 0, 100.0]
    with connect(bare.file):
        assert list(parallel([5]).map(within)) == [within(5)] == [expected]
        numbers = parallel(range(100), partition_size=9).filter(lambda x: x % 3)
        assert numbers.enumerate().drop_while(lambda x: x[0] < 60).starmap(pow).take(1) == [60**91]
        assert numbers.nlargest(2, lambda x: x % 10) == [19, 29]


def test_files_are_written_here(bare: BareCluster, tmp_path: Path) -> None:
    with connect(bare.file):
        rows = parallel(range(500)).map(lambda x: {"x": x, "text": "é" * (x % 3)})
        assert rows.write_jsonl(tmp_path / "a.jsonl", default=str).rows == 500
        rows.write_csv(tmp_path / "a-*.csv", rows_per_file=200)
    assert [json.loads(line)["x"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        *range(500)
    ]
    found = [(tmp_path / f"a-0000{n}.csv").read_text().splitlines()[1:] for n in range(3)]
    assert [int(line.partition(",")[0]) for lines in found for line in lines] == [*range(500)]
    assert len(list(tmp_path.iterdir())) == 4


def test_nested_two_levels_deep(bare: BareCluster) -> None:
    def innermost(n: int) -> int:
        return parallel(range(n)).map(lambda x: x + 1).reduce(lambda a, b: a + b, 0)

    def middle(n: int) -> int:
        return sum(parallel(range(n)).map(innermost))

    expected = [sum(sum(range(1, y + 1)) for y in range(x)) for x in range(6)]
    with connect(bare.file):
        assert list(parallel(range(6), partition_size=1).map(middle)) == expected


def test_an_error_has_its_type_its_note_and_the_lines_of_the_user_s_file(bare: BareCluster) -> None:
    with connect(bare.file), pytest.raises(ZeroDivisionError) as raised:
        list(parallel([4, 2, 0]).map(lambda x: 1 // x))
    assert raised.value.__notes__ == ["in step 1 of 1, map(lambda), at element 2: 0"]
    assert raised.traceback[-1].path == Path(__file__)


def test_large_elements_and_results(bare: BareCluster) -> None:
    """Past the size from which they go straight to workers, and past what a message may carry."""
    elements = [bytes([n]) * 3_000_000 for n in range(12)]
    with connect(bare.file) as connection:
        assert connection.engine.current.link.direct, "the workers are on this machine"
        assert list(parallel(elements).map(lambda x: x[::-1])) == elements
        assert list(parallel(elements, partition_size=5).map(len)) == [3_000_000] * 12
        assert parallel(elements).map(len).reduce(lambda a, b: a + b) == 36_000_000
        client = connection.engine.client
        assert eventually(lambda: not any(client.has_what().values())), "nothing stays on the workers"


# Modules ------------------------------------------------------------------------------------------

HELPER = """
import threading
from dataclasses import dataclass
from tools.words import join

LOCK = threading.Lock()  # cannot be pickled, and need not be: the module travels as source

@dataclass
class Point:
    x: int
    y: int

def swap(point):
    with LOCK:
        return Point(point.y, point.x)

def named(point):
    import lazily
    return join(lazily.NAME, point.x, FACTOR)

FACTOR = 1
"""


SCRIPT = """
import helper
from helper import Point
from parcoll import parallel

points = [Point(i, -i) for i in range(100)]
assert list(parallel(points).map(helper.swap)) == [Point(-i, i) for i in range(100)]
assert list(parallel(points).map(lambda p: Point(p.y, p.x))) == [Point(-i, i) for i in range(100)]
swapped = parallel(points)
swapped.foreach(helper.swap)
assert swapped.first() == Point(0, 0)

def inner(n):
    return list(parallel(points[:n]).map(helper.named))

print(list(parallel([2]).map(inner)))
"""


def write_modules(scripts: Scripts) -> None:
    scripts.write("helper.py", HELPER)
    scripts.write("lazily.py", "NAME = 'p'\n")
    scripts.write("tools/__init__.py", "")
    scripts.write(
        "tools/words.py",
        "from . import glue\n\ndef join(*parts):\n    return glue.GLUE.join(map(str, parts))\n",
    )
    scripts.write("tools/glue.py", "GLUE = '-'\n")


def run_script(scripts: Scripts, bare: BareCluster, text: str) -> str:
    """Run a script whose only setting is an environment variable; return what it printed."""
    process = scripts.start_file(text, env={"DASK_SCHEDULER_ADDRESS": bare.address})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), err
    return str(out)


def test_the_script_s_own_modules_travel(bare: BareCluster, scripts: Scripts) -> None:
    """With locks, relative imports, imports within functions, classes of elements; nested too."""
    write_modules(scripts)
    assert run_script(scripts, bare, SCRIPT) == "[['p-0-1', 'p-1-1']]\n"


@pytest.mark.parametrize(("text", "expected"), [(WORLD, "33 questions\n"), (CLASSES, "40 questions\n")])
def test_a_function_finds_what_the_script_has(
    bare: BareCluster, scripts: Scripts, text: str, expected: str
) -> None:
    """In `__main__`, also in the children of a worker; the worker has its own back afterwards."""
    scripts.write("plugins.py", PLUGINS)
    process = scripts.start_file(text, env={"PROBE_ADDRESS": bare.address})
    out, err = process.communicate(timeout=120)
    assert (out, err) == (expected, "")
    with distributed.Client(bare.address) as client:
        kinds = client.run(lambda: type(sys.modules["__main__"]).__name__)
    assert set(kinds.values()) == {"module"}


def test_a_module_that_has_changed_is_loaded_anew(bare: BareCluster, scripts: Scripts) -> None:
    write_modules(scripts)
    assert run_script(scripts, bare, SCRIPT) == "[['p-0-1', 'p-1-1']]\n"
    scripts.write("helper.py", HELPER.replace("FACTOR = 1", "FACTOR = 20"))
    assert run_script(scripts, bare, SCRIPT) == "[['p-0-20', 'p-1-20']]\n"
    scripts.write("tools/glue.py", "GLUE = '+'\n")
    assert run_script(scripts, bare, SCRIPT) == "[['p+0+20', 'p+1+20']]\n"


ONE_MORE_MODULE = """
import importlib
from parcoll import parallel
import first, kinds

sent = [kinds.Kind.A] * 40
running = iter(parallel(sent, partition_size=1).map(first.is_a))
assert next(running)
one_more = importlib.import_module("one_more")
assert all(parallel(sent, partition_size=1).map(one_more.is_a_too))
print(list(running).count(True))
"""


def test_an_evaluation_that_runs_keeps_its_classes_when_another_needs_one_more_module(
    bare: BareCluster, scripts: Scripts
) -> None:
    scripts.write("kinds.py", "import enum\nclass Kind(enum.Enum):\n    A = 1\n")
    scripts.write(
        "first.py", "import kinds, time\ndef is_a(x):\n    time.sleep(0.05)\n    return x is kinds.Kind.A\n"
    )
    scripts.write("one_more.py", "from kinds import Kind\ndef is_a_too(x):\n    return x is Kind.A\n")
    assert run_script(scripts, bare, ONE_MORE_MODULE) == "39\n"


def test_functions_of_this_module_travel_by_name_with_it(bare: BareCluster) -> None:
    """The module of a test is not installed, so it goes along."""
    with connect(bare.file):
        assert list(parallel(range(3)).map(twice)) == [0, 2, 4]


def test_what_a_function_forks_there_ends_by_sigterm(bare: BareCluster) -> None:
    """As `multiprocessing.Pool` ends its own; the handler of `dask worker` does nothing in a fork."""
    with connect(bare.file):
        assert list(parallel(range(4), partition_size=1).map(forks.ended)) == [-signal.SIGTERM] * 4


def twice(x: int) -> int:
    return 2 * x


def use_pure_eval(_: Any) -> str:
    import pure_eval

    return str(pure_eval.__name__)


@pytest.mark.parametrize("package", ["numpy", "pure_eval"])
def test_an_installed_package_that_a_worker_lacks_is_named(bare: BareCluster, package: str) -> None:
    module = __import__(package)
    with connect(bare.file), pytest.raises(SerializationError) as raised:
        list(parallel(range(3)).map(lambda x: (x, module)))
    sentence = str(raised.value)
    assert sentence.startswith("worker tcp://127.0.0.1:")
    assert f"has no package `{package}`" in sentence
    assert f'ship=["{package}"]' in sentence


def test_ship_adds_a_package_and_leaves_one_out(bare: BareCluster) -> None:
    import pure_eval

    with connect(bare.file, ship=["pure_eval"]):
        assert list(parallel(range(2)).map(use_pure_eval)) == ["pure_eval"] * 2
    with connect(bare.file, ship=[pure_eval]):
        assert list(parallel(range(2)).map(lambda _: pure_eval.__name__)) == ["pure_eval"] * 2


def test_what_ship_leaves_out_is_missing_there(bare: BareCluster, scripts: Scripts) -> None:
    scripts.write("left_out.py", "def one(x):\n    return 1\n")
    scripts.write(
        "script.py",
        """
        import sys, left_out
        from parcoll import connect, parallel
        with connect(sys.argv[1], ship=["-left_out"]):
            list(parallel([1]).map(left_out.one))
        """,
    )
    _, err = scripts.run("script.py", str(bare.file), code=1)
    assert "has no package `left_out`" in err.splitlines()[-2]


@pytest.mark.parametrize("ship", ["helper", [1], [""], ["-"], 5, [None]])
def test_what_ship_cannot_mean_is_a_type_error(bare: BareCluster, ship: Any) -> None:
    with pytest.raises(TypeError, match="ship"):
        connect(bare.file, ship=ship)


def test_a_module_that_does_not_exist_cannot_be_shipped(bare: BareCluster) -> None:
    with pytest.raises(ValueError, match="no_such_module"):
        connect(bare.file, ship=["no_such_module"])


def test_a_local_cluster_needs_no_ship() -> None:
    with pytest.raises(TypeError, match="local cluster"):
        connect(ship=["pure_eval"])


def test_a_worker_that_was_not_given_parcoll_is_told(tmp_path: Path) -> None:
    """As one that joins later and runs another Python; here the plugin is taken away."""
    with bare_cluster(tmp_path, 0) as cluster, connect(cluster.file) as connection:
        connection.engine.client.unregister_worker_plugin("parcoll")
        cluster.add_worker()
        with pytest.raises(SerializationError, match="has no parcoll and was not given it"):
            list(parallel(range(3)).map(abs))


# Workers that come and go -------------------------------------------------------------------------


def test_workers_that_come_later_are_used(tmp_path: Path) -> None:
    """None is there at first; one comes, then another, and each gets parcoll."""
    both = tmp_path / "both"

    def where_slowly(_: int) -> str:
        wait_for_file(both)
        time.sleep(0.1)
        return str(distributed.get_worker().address)

    with bare_cluster(tmp_path / "cluster", 0) as cluster, connect(cluster.file):
        done: list[set[str]] = []

        def evaluate() -> None:
            where = parallel(range(60), partition_size=1).map(where_slowly)
            done.append(set(where))

        thread = threading.Thread(target=evaluate)
        thread.start()
        time.sleep(0.5)
        assert not done
        cluster.add_worker()
        cluster.wait_for_workers(1)
        cluster.add_worker()
        cluster.wait_for_workers(2)
        both.touch()
        thread.join(60)
        (places,) = done
        assert len(places) == 2


def test_partitions_that_were_lost_with_their_worker_are_sent_again(tmp_path: Path) -> None:
    """dask has one copy of what was sent straight to a worker."""
    elements = [bytes([n]) * 1_500_000 for n in range(24)]

    def slowly(data: bytes) -> int:
        time.sleep(0.1)
        return data[0]

    with bare_cluster(tmp_path, 1) as cluster:
        doomed = cluster.add_worker()
        cluster.wait_for_workers(2)
        with connect(cluster.file) as connection:
            assert connection.engine.current.link.direct
            stream = iter(parallel(elements, partition_size=1).map(slowly))
            found = [next(stream)]
            os.kill(doomed.pid, signal.SIGKILL)
            found += stream
            assert found == list(range(24))


def test_an_adaptive_cluster_starts_workers_when_they_are_needed(scripts: Scripts) -> None:
    out = scripts.run_file(
        """
        import dask
        from distributed import LocalCluster
        from parcoll import connect, parallel
        if __name__ == "__main__":
            with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
                cluster.adapt(minimum=0, maximum=2, interval="100ms")
                with connect(cluster):
                    print(list(parallel(range(20)).map(lambda x: x + 1)))
        """,
        "-Wignore:.*wait for a worker:RuntimeWarning",  # a worker may take more than two seconds to start
    )
    assert out == f"{list(range(1, 21))}\n"


# The example --------------------------------------------------------------------------------------


def counted(text: str) -> list[str]:
    """Return the lines of the example that are the same wherever it runs."""
    return [line for line in text.splitlines() if not line.startswith("dashboard:") and " s, the" not in line]


def test_the_example_gives_the_same_answer_anywhere_changed_by_one_environment_variable(
    bare: BareCluster, scripts: Scripts, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Local, over tcp, and over tls with the certificates in dask's own configuration."""
    folder = tmp_path_factory.mktemp("tls")
    credentials = Credentials.generate()
    options = tls_options(folder, credentials.certificate, credentials.key)
    files = {"key": str(folder / "key.pem"), "cert": str(folder / "cert.pem")}
    tls = {"ca-file": str(folder / "cert.pem"), "client": files}
    config = folder / "config"
    config.mkdir()
    (config / "dask.yaml").write_text(yaml.safe_dump({"distributed": {"comm": {"tls": tls}}}))
    texts = str(Path(os.__file__).parent / "json")

    def run(**variable: str) -> list[str]:
        process = scripts.start(EXAMPLE, texts, env={"DASK_CONFIG": str(config)} | variable)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), err
        return counted(out)

    here = run()
    assert here[-1].endswith("files")
    assert run(DASK_SCHEDULER_ADDRESS=bare.address) == here
    security = credentials.security()
    with bare_cluster(folder / "cluster", 2, *options, security=security) as encrypted:
        assert encrypted.address.startswith("tls://")
        assert run(DASK_SCHEDULER_ADDRESS=encrypted.address) == here


# Files --------------------------------------------------------------------------------------------


def test_workers_there_read_files(bare: BareCluster, tmp_path: Path) -> None:
    text = "".join(f"line {number} \u00e4\r\n" for number in range(3_000))
    lines = text.replace("\r\n", "\n").splitlines(keepends=True)
    rows = [{"x": str(number), "y": "\u00e9"} for number in range(2_000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row['x']},{row['y']}\n" for row in rows))
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "broken.gz").write_bytes(gzip.compress(text.encode())[:2_000])
    with connect(bare.file):
        assert list(read_text(tmp_path / "a.txt", blocksize="5 kiB")) == lines
        assert list(read_jsonl(tmp_path / "*.jsonl.gz")) == rows
        assert list(read_csv(tmp_path / "a.csv", blocksize="2 kiB", newlines_in_values=False)) == rows
        csv = tmp_path / "a.csv"
        assert read_files(tmp_path / "*.csv").first() == (str(csv), csv.read_bytes())
        broken = read_text(tmp_path / "broken.gz", on_error="skip")
        assert 0 < broken.count() < len(lines)
        assert broken.errors[0].element.path == str(tmp_path / "broken.gz")
    with bare.client() as client:
        assert read_text(tmp_path / "a.txt").bag.count().compute(scheduler=client) == len(lines)


def test_the_report_of_a_log_is_the_same_everywhere(bare: BareCluster, scripts: Scripts) -> None:
    """And that of plain Python."""
    example = EXAMPLE.with_name("log_report.py")

    def run(**variables: str) -> list[str]:
        process = scripts.start(example, "--lines", "3000", "--top", "3", env=variables)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), err
        return [str(line) for line in out.splitlines()]

    found, names = run(), {"__name__": "example"}
    assert run(DASK_SCHEDULER_ADDRESS=bare.address) == found
    exec(example.read_text(encoding="utf-8").replace("\nmain()\n", "\n"), names)
    made: Any = names
    lines = list(made["make_lines"](3000, 1))
    hits = [made["parse"](line) for line in lines if not line.endswith("-")]
    sent: Counter[str] = Counter()
    of_users: dict[str, list[Any]] = {}
    for hit in hits:
        sent[hit.url] += hit.nbytes
        of_users.setdefault(hit.user, []).append(hit)
    by_hour = Counter((hit.second // 3600, hit.status // 100) for hit in hits)
    sessions = [made["sessions"](user, of_user) for user, of_user in of_users.items()]
    assert found[5].split()[1::3] == [f"{by_hour[5, status]:,}" for status in (2, 3, 4, 5)]
    assert found[24:27] == [f"{n:>14,} bytes  {url}" for url, n in sent.most_common(3)]
    most = sorted(sessions, key=lambda pair: -pair[1])[:3]
    assert found[27:30] == [f"{n:>14,} sessions  {user}" for user, n in most]
    assert found[30] == f"{len(of_users):,} users; {len(lines) - len(hits):,} lines could not be read"
