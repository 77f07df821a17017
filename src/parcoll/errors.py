"""The exceptions that parcoll itself raises; a user's own exceptions pass through with their own types."""

from __future__ import annotations


class ParcollError(Exception):
    """Base of everything parcoll raises on its own account."""


class SourceConsumedError(ParcollError, RuntimeError):
    """A one-pass source (an iterator, a generator, a file) was evaluated a second time."""


class SerializationError(ParcollError, TypeError):
    """A function, an element or a result cannot travel between processes."""


class ClusterStartError(ParcollError, RuntimeError):
    """The local cluster did not start."""


class ConnectError(ParcollError, ConnectionError):
    """No dask scheduler could be joined at the address given."""


class WorkerLostError(ParcollError, RuntimeError):
    """Worker processes died, again and again, while they ran one partition."""


class ClusterLostError(ParcollError, ConnectionError):
    """The scheduler went away, or was closed, while an evaluation needed it."""
