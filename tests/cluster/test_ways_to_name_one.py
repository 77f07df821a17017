"""How a cluster may be named to `connect`: any address that dask itself knows, any object that gives one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from bare import BareCluster, bare_cluster
from distributed.comm import registry
from distributed.comm.tcp import TCPBackend, TCPConnector

from parcoll import ConnectError, connect, parallel


@pytest.fixture(scope="module")
def bare(leaves_no_trace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    with bare_cluster(tmp_path_factory.mktemp("bare") / "cluster", 1) as cluster:
        yield cluster


def evaluates() -> bool:
    return list(parallel(range(20)).map(lambda x: x + 1)) == list(range(1, 21))


@pytest.mark.parametrize(
    "written",
    [
        lambda address: address.removeprefix("tcp://"),
        lambda address: address.replace("tcp://", "TCP://"),
        lambda address: f" {address}/ ",
        lambda address: address.removeprefix("tcp://").replace("127.0.0.1", "localhost"),
    ],
)
def test_an_address_may_be_written_as_dask_takes_it(bare: BareCluster, written: Any):
    with connect(written(bare.address)):
        assert evaluates()


def test_a_file_of_that_name_counts_before_a_host(
    bare: BareCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("host:8786").write_text(bare.file.read_text())
    with connect("host:8786"):
        assert evaluates()


class Gateway(TCPBackend):  # type: ignore[misc]
    """A scheme of another package, which leads to a scheduler by tcp."""

    def get_connector(self) -> Any:
        return Connector()


class Connector(TCPConnector):  # type: ignore[misc]
    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Any:
        return await super().connect(address.partition("/")[0], deserialize, **arguments)


class OnlyAddress:
    """A cluster object, as dask-gateway's is one."""

    def __init__(self, address: str) -> None:
        self.scheduler_address = address


class OnlyClient:
    """A cluster object whose address no other client can use."""

    scheduler_address = "unheard-of://somewhere"

    def __init__(self, client: distributed.Client) -> None:
        self._client = client

    def get_client(self) -> distributed.Client:
        return self._client


def test_a_scheme_that_another_package_has_taught_dask(bare: BareCluster, monkeypatch: pytest.MonkeyPatch):
    address = f"gateway://{bare.address.removeprefix('tcp://')}/cluster-1"
    with pytest.raises((ConnectError, TypeError), match="gateway"):
        connect(address)
    monkeypatch.setitem(registry.backends, "gateway", Gateway())
    with connect(address):
        assert evaluates()
    with connect(OnlyAddress(address)):
        assert evaluates()


def test_an_object_that_gives_a_client(bare: BareCluster):
    with bare.client() as client:
        with connect(OnlyClient(client)):
            assert evaluates()
        assert client.status == "running", "it is its owner's to close"


def test_what_gives_neither_is_told(bare: BareCluster):
    class Neither:
        scheduler_address = None

    for target in (Neither(), Neither, OnlyClient, 5):
        with pytest.raises(TypeError, match=r"connect\(\) needs None \(a local cluster\)"):
            connect(target)


def test_a_closed_connection_says_so_when_it_is_entered_again():
    connection = connect("inline")
    connection.close()
    with pytest.raises(ConnectError, match="this connection is closed"), connection:
        pass


def test_a_temporary_directory_that_is_not_there_yet_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "not" / "yet"
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(folder))
    with connect(n_workers=1):
        assert list(folder.glob("parcoll-*"))
        assert evaluates()
    assert not list(folder.iterdir())
