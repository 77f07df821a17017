"""Whether the numbers of an evaluation hold."""

from __future__ import annotations

from typing import Any


def check_sums(stats: Any) -> None:
    """Every element is accounted for: from step to step, and in each."""
    entered = stats.elements_in
    for step in stats.steps:
        assert step.entered == entered
        assert step.entered + step.added + step.replaced == step.left + step.filtered + step.failed
        assert step.filtered >= 0
        assert step.added >= -step.entered
        if step.label.startswith(("map", "foreach")):
            assert step.entered + step.replaced == step.left + step.failed
        entered = step.left
    assert stats.elements_out == entered
    assert stats.retries == sum(step.retries for step in stats.steps)


def drained(values: Any) -> tuple[list[Any], Exception | None]:
    results: list[Any] = []
    try:
        for result in values:
            results += [result]
    except Exception as error:
        return results, error
    return results, None
