"""What the soak (`chaos.py`) has found, each as short as it can be had."""

from __future__ import annotations

import operator

from parcoll import Connection, parallel


def twice(x: int) -> list[int]:
    return [x, x]


def test_a_process_beside_a_worker_folds_one_partition_after_the_other(cluster: Connection) -> None:
    """Its fold has no steps, and left its clock's account to the steps of the next partition."""
    doubled = parallel(range(2_000), partition_size=20).flatmap(twice, timeout=60)
    assert doubled.fold(operator.add, 0, operator.add) == 2 * sum(range(2_000))
