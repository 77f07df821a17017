"""Somebody tries to get into a local cluster: through its ports, its processes, its files, its pages.

local/test_privacy_of_a_host.py has the rest: wrong keys, handshakes, what the processes show.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import hosts
import psutil
import pytest
from scripts import Scripts, import_path

from parcoll import Connection, parallel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
LOOPBACK = "127.0.0.1"
NOBODY = 65534


class Target:
    """A cluster that has worked, and what there is to know of it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        assert list(parallel(range(100)).map(abs)) == list(range(100))
        connection.engine.client.wait_for_workers(2, timeout=30)
        self.processes = psutil.Process().children(recursive=True)
        self.ports = {
            found.laddr.port
            for process in self.processes
            for found in process.net_connections()
            if found.status == psutil.CONN_LISTEN
        }
        link = connection.dashboard_link
        assert link is not None
        self.dashboard = link.removesuffix("/parcoll")
        self.dashboard_port = int(self.dashboard.rpartition(":")[2])
        credentials = connection.engine.way.host.wait_ready().credentials
        self.certificate: str = credentials.certificate
        self.key_lines = [line for line in credentials.key.splitlines() if "-" not in line]


@pytest.fixture(scope="module")
def target(cluster: Connection) -> Target:
    """Give this module's cluster: a host, a scheduler and two workers."""
    found = Target(cluster)
    assert len(found.processes) == 4
    assert len(found.ports) >= 4  # the scheduler's, the dashboard's, the workers'
    assert min(map(len, found.key_lines)) > 20
    return found


# Through the network ------------------------------------------------------------------------------


def other_addresses() -> list[tuple[int, str]]:
    """Return this machine's addresses other than 127.0.0.1."""
    return [
        (found.family, found.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family in (socket.AF_INET, socket.AF_INET6) and found.address != LOOPBACK
    ]


def reaches(family: int, address: str, port: int) -> bool:
    with socket.socket(family) as attempt:
        attempt.settimeout(5)
        try:
            attempt.connect((address, port))
        except OSError:
            return False
        return True


@pytest.mark.skipif(not other_addresses(), reason="this machine has no other address")
def test_no_port_answers_at_another_address_of_the_machine(target: Target) -> None:
    assert all(reaches(socket.AF_INET, LOOPBACK, port) for port in target.ports)
    for family, address in other_addresses():
        assert not [port for port in target.ports if reaches(family, address, port)], address


@pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))
def test_no_port_answers_another_host() -> None:
    """An open port beside them shows that the other host does reach this one."""
    script = """
        import json, socket, psutil
        from parcoll import connect, parallel
        with connect(n_workers=1):
            list(parallel(range(10)).map(abs))
            ports = {
                found.laddr.port
                for process in psutil.Process().children(recursive=True)
                for found in process.net_connections()
                if found.status == psutil.CONN_LISTEN
            }
            with socket.create_server(("0.0.0.0", 0)) as open_to_all:
                print(json.dumps([open_to_all.getsockname()[1], *ports]), flush=True)
                print(open_to_all.accept()[1][0], flush=True)
                open_to_all.settimeout(60)
                open_to_all.accept()
    """
    with hosts.Network() as network:
        user, other = network.host("user"), network.host("other")
        process = user.script(textwrap.dedent(script))
        assert process.stdout is not None
        open_port, *ports = json.loads(process.stdout.readline())
        assert len(ports) >= 3
        assert other.knock(user, open_port)[0] == "connected"
        assert process.stdout.readline() == f"{other.address}\n"
        assert {other.knock(user, port)[0] for port in ports} == {"ConnectionRefusedError"}
        assert other.knock(user, open_port)[0] == "connected"
        assert hosts.result_of(process) == ""


# As another user of the machine -------------------------------------------------------------------

# Runs as nobody. Python is started as root, since nobody may not be allowed to read it.
INTRUDER = """
import ctypes, encodings.idna, json, os, signal, socket, ssl, sys, urllib.request
pids, ports, memory_files, certificate = json.loads(sys.stdin.read())
os.setgroups([])
os.setgid(NOBODY)
os.setuid(NOBODY)
got = {}

def attempt(name, func):
    try:
        got[name] = repr(func())[:300]
    except (OSError, ssl.SSLError) as error:
        pass

def read(path):
    with open(path, "rb") as file:
        return file.read(100)

def trace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None):  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"

def descriptor_of(pid, number):
    libc = ctypes.CDLL(None, use_errno=True)
    copy = libc.syscall(438, os.pidfd_open(pid), number, 0)  # pidfd_getfd
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return os.pread(copy, 100, 0)

for pid in pids:
    attempt(f"{pid} cmdline", lambda: read(f"/proc/{pid}/cmdline"))
    for name in ("environ", "mem", "maps", "smaps", "auxv", "stack", "fdinfo/0"):
        attempt(f"{pid} {name}", lambda: read(f"/proc/{pid}/{name}"))
    for name in ("fd", "map_files", "task/%d/fd" % pid):
        attempt(f"{pid} {name}", lambda: os.listdir(f"/proc/{pid}/{name}"))
    for name in ("cwd", "exe", "root", "ns/net"):
        attempt(f"{pid} {name}", lambda: os.readlink(f"/proc/{pid}/{name}"))
    attempt(f"{pid} signal", lambda: os.kill(pid, signal.SIGTERM))
    attempt(f"{pid} trace", lambda: trace(pid))
for pid, number in memory_files:
    attempt(f"{pid} descriptor {number}", lambda: read(f"/proc/{pid}/fd/{number}"))
    attempt(f"{pid} copy of {number}", lambda: descriptor_of(pid, number))

def talk(port):
    context = ssl.create_default_context(cadata=certificate)
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        with context.wrap_socket(raw) as wrapped:
            return wrapped.recv(100) or 1 / 0

def ask_plainly(port):
    with socket.create_connection(("127.0.0.1", port), timeout=2) as raw:
        raw.sendall((8).to_bytes(8, "little") + bytes(8) + b"\\r\\n\\r\\n")
        if not (answer := raw.recv(100)):
            raise OSError("closed")
        return answer

def page(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
    except urllib.error.HTTPError as error:
        return error.code

for port in ports:
    attempt(f"{port} page", lambda: page(port))
    attempt(f"{port} plain", lambda: ask_plainly(port))
    if f"{port} page" not in got:
        attempt(f"{port} talk", lambda: talk(port))
print(json.dumps(got))
""".replace("NOBODY", str(NOBODY))


def memory_files(pids: list[int]) -> list[tuple[int, int]]:
    """Return the processes' files in memory: key and shared data."""
    found = []
    for pid in pids:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if "memfd:parcoll" in os.readlink(f"/proc/{pid}/fd/{number}"):
                    found.append((pid, int(number)))
    return found


@as_root
def test_another_user_sees_command_lines_and_the_dashboard_and_nothing_else(target: Target) -> None:
    parts = [bytes(10**6)] * 20
    assert list(parallel(parts).map(lambda part: part)) == parts  # some shared memory to look for
    pids = [os.getpid(), *(process.pid for process in target.processes)]
    files = memory_files(pids)
    assert len({pid for pid, _ in files}) >= 3, "the user's process, the scheduler and a worker have some"
    question = json.dumps([pids, sorted(target.ports), files, target.certificate])
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER], input=question, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    got: dict[str, str] = json.loads(done.stdout)
    command_lines = {name: got.pop(name) for name in list(got) if name.endswith("cmdline")}
    assert len(command_lines) == len(pids), "this much everybody sees"
    assert not [line for line in target.key_lines for text in command_lines.values() if line in text]
    pages = {name: got.pop(name) for name in list(got) if name.endswith("page")}
    assert pages.pop(f"{target.dashboard_port} page") == "b'ok'"
    assert set(pages.values()) == {"404"}, "workers serve no pages"
    plain = {name: got.pop(name) for name in list(got) if name.endswith("plain")}
    assert len(plain) == len(pages) + 1, (
        "only these servers say anything, which is that they do not understand"
    )
    assert all("HTTP/1.1 400 Bad Request" in text for text in plain.values())
    assert got == {}


@as_root
def test_the_key_is_where_only_its_user_can_read_it(target: Target) -> None:
    """That the search finds something: root may read what the intruder may not."""
    pids = [process.pid for process in target.processes]
    texts = []
    for pid, number in memory_files(pids):
        with open(f"/proc/{pid}/fd/{number}", "rb") as file:
            texts.append(file.read(10_000))
    assert any(target.key_lines[0].encode() in text for text in texts)


# In files -----------------------------------------------------------------------------------------

# Python imports this at its start, in each process: it writes down what is opened for writing.
WATCH = """
import os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.set_inheritable(log, True)
def watch(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(log, f"{{arguments[0]}}\\n".encode())
{before}
sys.addaudithook(watch)
"""
WORK = """
import contextlib, os, psutil, tempfile
from parcoll import connect, parallel
with connect(n_workers=2) as cluster:
    print(parallel(range(1000)).map(lambda x: x + 1).reduce(lambda a, b: a + b))
    mine = psutil.Process().net_connections()
    assert mine and all(found.status != psutil.CONN_LISTEN for found in mine), "no port of this process's"
    key = cluster.engine.way.host.wait_ready().credentials.key.splitlines()[1]
    folders = [tempfile.gettempdir(), os.getcwd(), "/dev/shm"]
    files = [os.path.join(at, file) for top in folders for at, _, found in os.walk(top) for file in found]
    for path in filter(os.path.isfile, files):
        # Other programs have files in /dev/shm too: large ones, and such that are gone a moment later.
        with contextlib.suppress(OSError), open(path, "rb") as file:
            assert key.encode() not in file.read(10**6), path
"""


def written_files(folder: Path, before: str = "") -> set[str]:
    """Return what all processes of a script with a local cluster open for writing.

    Apart from bytecode, and the files by which `tempfile` finds a folder that can be written to.
    """
    scripts = Scripts(folder)
    log = folder / "written"
    scripts.write("watch/sitecustomize.py", WATCH.format(log=str(log), before=before))
    script = scripts.write("script.py", WORK)
    env = {"PYTHONPATH": os.pathsep.join([str(folder / "watch"), *import_path()])}
    process = scripts.start(script, env=env)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "500500\n"), err
    scripts.check()
    tried = re.compile(re.escape(str(scripts.scratch)) + "/[a-z0-9_]{8}")
    written = set(log.read_text().splitlines())
    return {path for path in written if "__pycache__" not in path and not tried.fullmatch(path)}


def test_no_file_is_written_and_the_script_s_own_process_listens_at_no_port(
    tmp_path: Path,
) -> None:
    """Not for a moment either; files in memory have no path to be opened by."""
    assert written_files(tmp_path) <= {os.devnull}


def test_without_files_in_memory_dask_writes_the_key_for_a_moment(tmp_path: Path) -> None:
    """That the test above can fail; so it is on macOS, in a folder that only the user can enter."""
    written = written_files(tmp_path, "del os.memfd_create")
    assert {Path(name).name for name in written} >= {"dask.pem"}


# On the dashboard's pages -------------------------------------------------------------------------

PAGES = (
    *("info/main/workers.html", "info/main/exceptions.html", "info/main/logs.html", "metrics"),
    *("json/counts.json", "json/identity.json", "individual-plots.json", "status", "tasks", "graph"),
)


def test_the_dashboard_shows_no_element_and_no_key(target: Target) -> None:
    """It shows the names of steps: that they are found shows that the pages are read."""
    pytest.importorskip("bokeh")
    secret = "the-secret-of-the-user"

    def step_of_user(x: str) -> str:
        return x + secret

    def fail(x: str) -> str:
        raise ValueError(f"{x} {secret}")

    numbers = parallel([f"{secret}-{n}" for n in range(50)], partition_size=1)
    kept = numbers.map(step_of_user)
    kept.foreach(lambda x: x)
    with pytest.raises(ValueError, match=secret):
        list(numbers.map(fail))
    tasks = target.connection.engine.client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.tasks])
    # Those that foreach() keeps: others may be forgotten before their page is asked for.
    keys = [key for key in tasks if key.startswith("map-step-of-user-foreach")]
    assert keys
    texts = {}
    for path in (*PAGES, *(f"info/task/{key}.html" for key in keys[:20])):
        try:
            with urllib.request.urlopen(f"{target.dashboard}/{path}", timeout=30) as answer:
                texts[path] = answer.read().decode()
        except urllib.error.HTTPError as error:  # dask's identity.json fails once workers sent metrics
            assert path == "json/identity.json"
            texts[path] = error.read().decode()
    assert any("step-of-user" in text for path, text in texts.items() if path.startswith("info/task"))
    shown = [path for path, text in texts.items() if secret in text or target.key_lines[0] in text]
    assert shown == []


def test_the_pipelines_page_shows_messages_of_errors_and_no_element(target: Target) -> None:
    secret = "nobody-else-may-see-this"

    def fail(x: str) -> str:
        raise ValueError("cannot parse this")

    with pytest.raises(ValueError, match="cannot parse"):
        list(parallel([secret] * 5, name="watched").map(str).map(fail))
    shown = ""
    for path in ("parcoll", "parcoll/json", "metrics"):
        with urllib.request.urlopen(f"{target.dashboard}/{path}", timeout=30) as answer:
            shown += answer.read().decode()
    assert "cannot parse this" in shown
    assert "in step 2 of 2, map(fail), at element 0" in shown
    assert secret not in shown
    assert target.key_lines[0] not in shown


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:{port}", 101), ("http://evil.example", 403)]
)
def test_a_page_of_another_site_gets_no_data_from_the_dashboard(
    target: Target, origin: str, status: int
) -> None:
    """A browser says which site's page opens a connection, and leaves it to the server to refuse."""
    pytest.importorskip("bokeh")
    with urllib.request.urlopen(f"{target.dashboard}/status", timeout=30) as answer:
        (token,) = re.findall(r'"token":"([^"]+)"', answer.read().decode())
    request = [
        "GET /status/ws HTTP/1.1",
        f"Host: {LOOPBACK}:{target.dashboard_port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Sec-WebSocket-Protocol: bokeh, {token}",
        f"Origin: {origin.format(port=target.dashboard_port)}",
    ]
    with socket.create_connection((LOOPBACK, target.dashboard_port), timeout=10) as page:
        page.sendall("\r\n".join([*request, "", ""]).encode())
        assert page.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_dashboard_takes_no_commands(target: Target, method: str) -> None:
    """Of dask's own commands over HTTP either, which are routes that are not there."""
    paths = ("status", "json/counts.json", "parcoll", "parcoll/json", "info/main/workers.html", "", "metrics")
    commands = ("api/v1/retire_workers", "api/v1/adaptive_target", "api/v1/get_workers", "api/v1")
    for path in (*paths, *commands):
        request = urllib.request.Request(f"{target.dashboard}/{path}", data=b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code in (403, 404, 405), path
    assert list(parallel(range(5)).map(abs)) == list(range(5))


def test_the_pipelines_page_says_who_evaluates(target: Target) -> None:
    assert (
        list(parallel(range(3), name="whose", partition_size=1).map(lambda x: time.sleep(0.2))) == [None] * 3
    )
    with urllib.request.urlopen(f"{target.dashboard}/parcoll/json", timeout=30) as answer:
        shown = json.loads(answer.read())["pipelines"]
    (whose,) = {one["client"] for one in shown if one["name"] == "whose"}
    program = os.path.basename(sys.argv[0])
    assert whose == f"{getpass.getuser()}@{socket.gethostname()}: {program}, process {os.getpid()}"


def test_shared_memory_has_no_name(target: Target) -> None:
    """What the processes have mapped is there, and nothing of it in /dev/shm."""
    captured = bytes(10**6)
    parts = [bytes(10**6)] * 20
    assert list(parallel(parts).map(lambda part: len(part + captured))) == [2 * 10**6] * 20
    maps = ""
    for process in [psutil.Process(), *target.processes]:
        with suppress(OSError):
            maps += Path(f"/proc/{process.pid}/maps").read_text()
    assert "/memfd:parcoll (deleted)" in maps
    assert "/dev/shm/" not in maps
