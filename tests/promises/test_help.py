"""What `help()` and tab completion show: every public name is explained, and nothing else is public."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import parcoll
from parcoll import ClusterLostError, Connection, ElementError, ParallelGen, ParcollError, connect, parallel
from parcoll.front.explain import Explanation
from parcoll.watch.stats import FailureReport, PartitionSizes, Stats, StepStats, Waits

VALUES = [Stats, StepStats, Waits, PartitionSizes, FailureReport, ElementError, Explanation]
INTERNAL = {"engine"}  # of a connection: tests look at it


def public(of: object) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def attributes(kind: type) -> set[str]:
    """Return the names in the "Attributes:" section of a class's docstring."""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    lines = section.partition("\n\n")[0].splitlines()
    return {line.strip().partition(":")[0] for line in lines if line.startswith("    ") and line[4] != " "}


def fields_and_properties(kind: type) -> set[str]:
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    properties = {name for name in dir(kind) if isinstance(getattr(kind, name), property)}
    return {name for name in fields | properties if not name.startswith("_")}


@pytest.mark.parametrize("kind", VALUES)
def test_each_field_is_explained_in_the_docstring_of_its_class(kind: type) -> None:
    properties = {name for name in dir(kind) if isinstance(getattr(kind, name), property)}
    explained_there = {name for name in properties if getattr(kind, name).__doc__}
    assert fields_and_properties(kind) - explained_there <= attributes(kind) <= fields_and_properties(kind)


def test_stats_are_fields_and_properties_and_a_snapshot() -> None:
    stats = parallel(range(3)).stats
    assert public(stats) == fields_and_properties(Stats) | {"snapshot"}
    assert public(stats.sizes) == fields_and_properties(PartitionSizes)


def test_errors_have_no_public_names_beyond_those_explained() -> None:
    error = ClusterLostError("gone")
    assert public(error) - public(ConnectionError()) == attributes(ClusterLostError) == {"yielded"}
    element = ElementError("map(f)", 0, 0, None, ValueError())
    assert public(element) - public(Exception()) == attributes(ElementError)


@pytest.mark.parametrize("kind", [ParallelGen, Connection])
def test_what_is_called_says_what_it_does(kind: type) -> None:
    for name in public(kind) | {"__iter__"} & set(dir(kind)):
        assert getattr(kind, name).__doc__, name
    with connect("inline") as connection:
        assert public(connection) - public(Connection) == INTERNAL


@pytest.mark.parametrize("name", [name for name in parcoll.__all__ if name[0].islower()])
def test_a_function_says_what_each_argument_is_and_gives_an_example(name: str) -> None:
    function: Any = getattr(parcoll, name)
    text = inspect.getdoc(function) or ""
    assert ">>>" in text
    if inspect.isfunction(function):
        for argument in inspect.signature(function).parameters:
            assert f"\n    {argument}: " in text or f"`{argument}`" in text, argument


@pytest.mark.parametrize("setting", ["on_error", "retries", "retry_on", "timeout", "concurrency", "rate"])
def test_map_explains_its_settings_and_the_other_steps_refer_to_it(setting: str) -> None:
    assert f"\n    {setting}: " in (inspect.getdoc(ParallelGen.map) or "")
    for other in (ParallelGen.filter, ParallelGen.flatmap):
        assert f"`{setting}`" in (inspect.getdoc(other) or "")
    assert "those of `map`" in (inspect.getdoc(ParallelGen.foreach) or "")


def test_each_exception_says_when_it_is_raised() -> None:
    kinds = [getattr(parcoll, name) for name in parcoll.__all__]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, ParcollError):
            assert (kind.__doc__ or "") != (kind.__mro__[1].__doc__ or "")
