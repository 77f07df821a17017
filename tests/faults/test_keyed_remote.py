"""Keyed operations on a remote cluster whose scheduler or worker dies in each phase, with `reconnect=`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import bare_cluster
from keyed_moments import KEYED
from moments import Moment, Reached
from ports import free_port
from restarted import Restarted
from scripts import eventually, meanwhile

from parcoll import connect


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """Give a cluster that is running again after each test, whose workers have a hash seed of their own."""
    with bare_cluster(tmp_path_factory.mktemp("cluster"), 0, port=free_port()) as found:
        found.environment["PYTHONHASHSEED"] = "5"
        yield Restarted(found)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["scheduler", "worker"])
@pytest.mark.parametrize("scratch", [False, True], ids=["through this process", "through a scratch"])
@pytest.mark.parametrize("moment", KEYED, ids=lambda row: row.name.replace(" ", "-"))
def test_a_death_in_each_phase(
    cluster: Restarted, moment: Moment, scratch: bool, whom: str, tmp_path: Path
) -> None:
    """Nothing is lost, and nothing comes twice; nor is anything left in the scratch."""
    (tmp_path / "scratch").mkdir()

    def strike(ended: threading.Event) -> None:
        reached = tmp_path / "reached-0"
        while not (reached.exists() and reached.read_text().endswith("\n")):
            if ended.wait(0.005):
                return
        if whom == "scheduler":
            cluster.lose()
            (tmp_path / "struck-0").touch()
            cluster.start()
        else:
            (worker,) = [one for one in cluster.workers if one.pid == int(reached.read_text())]
            worker.kill()
            worker.wait(10)
            (tmp_path / "struck-0").touch()
            cluster.workers = [one for one in cluster.workers if one is not worker]
            cluster.workers.append(cluster.cluster.add_worker())

    place = str(tmp_path / "scratch") if scratch else None
    with connect(cluster.address, reconnect=60, scratch=place), meanwhile(strike):
        evaluated = moment.run(Reached(tmp_path, 1))
        assert evaluated.made == evaluated.expected
        cluster.cluster.wait_for_workers(2)
    assert (tmp_path / "reached-0").exists()
    assert eventually(lambda: not os.listdir(tmp_path / "scratch"), 5)
