"""No pause before a retry: workers import this module by its name, which of a `conftest` is that of many."""

from __future__ import annotations


def no_pause() -> None:
    """Have this process, and those that it starts beside it, not wait before a retry."""
    import impatient  # noqa: F401

    from parcoll.world import boot

    boot.also_import.append("impatient")
