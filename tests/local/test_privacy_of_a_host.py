"""What of a local cluster can be reached and read from outside: nothing without its key."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import distributed.comm
import psutil
import pytest
from distributed import Security
from local_hosts import directories, processes_with, run, tree

from parcoll.local.credentials import Credentials

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a local cluster needs fork")


def test_ports_listen_on_loopback_only(start: Any, connect: Any) -> None:
    host = start(n_workers=2)
    client = connect(host.wait_ready())
    client.wait_for_workers(2, timeout=20)
    listening = [
        connection.laddr.ip
        for process in tree(host)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}


def test_a_client_without_the_key_is_refused(start: Any) -> None:
    """With dask's connections: a Client that fails hangs now and then when it is collected."""
    ready = start(n_workers=1).wait_ready()
    own = ready.credentials.security()
    others = (
        Security(),
        Security(require_encryption=True, tls_ca_file=ready.credentials.certificate),
        Credentials.generate().security(),
    )

    async def ask(address: str, security: Security) -> Any:
        timeout = 20 if security is own else 2  # dask tries again until then
        comm = await distributed.comm.connect(
            address, timeout=timeout, **security.get_connection_args("client")
        )
        await comm.write({"op": "identity"})
        answer = await comm.read()
        await comm.close()
        return answer

    assert asyncio.run(ask(ready.address, own))["type"] == "Scheduler"
    for security in others:
        with pytest.raises((OSError, TypeError)):
            asyncio.run(ask(ready.address, security))
    with pytest.raises(OSError):
        asyncio.run(ask(ready.address.replace("tls", "tcp"), Security()))


@pytest.mark.parametrize("own", [None, Credentials.generate()])
def test_every_port_asks_for_the_key(
    start: Any, connect: Any, tmp_path: Path, own: Credentials | None
) -> None:
    """Scheduler and workers; a handshake alone may seem to succeed before the peer refuses."""
    ready = start(n_workers=1).wait_ready()
    client = connect(ready)
    client.wait_for_workers(1, timeout=20)
    context = ssl.create_default_context(cadata=ready.credentials.certificate)
    context.check_hostname = False
    if own:
        pem = tmp_path / "own.pem"
        pem.write_text(own.certificate + own.key)
        context.load_cert_chain(pem)
    for address in (ready.address, *client.scheduler_info()["workers"]):
        port = int(address.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            pytest.raises(ssl.SSLError),
            context.wrap_socket(raw) as wrapped,
        ):
            wrapped.recv(1)


def test_the_key_is_nowhere_to_be_read(start: Any, connect: Any, mark: str) -> None:
    ready = start(n_workers=1).wait_ready()
    run(connect(ready), len, "abc")
    secrets = [line for line in ready.credentials.key.splitlines() if "-" not in line]
    assert len(secrets) >= 3
    texts = [repr(ready), repr(ready.credentials)]
    for process in processes_with(mark):
        texts += [*process.cmdline(), *process.environ().values()]
    for directory in directories():
        for path in Path(directory).rglob("*"):
            if path.is_file():
                texts.append(path.read_text(errors="replace"))
    assert not [secret for secret in secrets if any(secret in text for text in texts)]


def test_the_directory_is_private(start: Any) -> None:
    start(n_workers=1).wait_ready()
    (directory,) = directories()
    assert os.stat(directory).st_mode & 0o777 == 0o700


def test_this_process_s_environment_is_unchanged(start: Any) -> None:
    before = dict(os.environ)
    start(n_workers=1).wait_ready()
    assert dict(os.environ) == before


def test_workers_leave_the_cores_to_each_other(
    start: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    client = connect(start(n_workers=1).wait_ready())
    assert run(client, os.getenv, "OMP_NUM_THREADS") == "1"
    assert run(client, os.getenv, "MKL_NUM_THREADS") == "7"


def test_each_cluster_has_a_key_of_its_own_for_ten_years() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = [Credentials.generate() for _ in range(3)]
    assert len({one.key for one in made}) == len({one.certificate for one in made}) == 3
    for one in made:
        key = serialization.load_pem_private_key(one.key.encode(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP256R1)
        certificate = x509.load_pem_x509_certificate(one.certificate.encode())
        assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 3651


def own_context(credentials: Credentials, folder: Path) -> ssl.SSLContext:
    pem = folder / "own.pem"
    pem.write_text(credentials.certificate + credentials.key)
    context = ssl.create_default_context(cadata=credentials.certificate)
    context.check_hostname = False
    context.load_cert_chain(pem)
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_tls_than_1_2_is_refused(start: Any, tmp_path: Path) -> None:
    """With the right key; and this machine's OpenSSL would speak it."""
    ready = start(n_workers=1).wait_ready()
    port = int(ready.address.rpartition(":")[2])

    def speak(version: ssl.TLSVersion) -> str | None:
        context = own_context(ready.credentials, tmp_path)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw) as wrapped,
        ):
            return wrapped.version()

    assert speak(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError):
            speak(old)


def test_a_client_refuses_a_scheduler_that_has_another_key(tmp_path: Path) -> None:
    """Whoever takes a port that a cluster had is told nothing."""
    own, other = Credentials.generate(), Credentials.generate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = tmp_path / "other.pem"
    pem.write_text(other.certificate + other.key)
    context.load_cert_chain(pem)
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    async def call() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        address = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        security = own.security()
        with pytest.raises(OSError, match="TLS certificate does not match"):
            await distributed.comm.connect(address, timeout=2, **security.get_connection_args("client"))
        server.close()

    asyncio.run(call())
    assert not any(heard)
