"""The shared memory of one engine: what is packed into it, and lent to jobs for their results."""

from __future__ import annotations

import os
import warnings

from parcoll.log import logger
from parcoll.wire.payload import SHARED_BYTES, Packed, Payload, Shared, Space, pickled
from parcoll.wire.segments import HEADER, Segment, Segments


class Sharing:
    """Segments for the jobs of an engine whose workers are on this machine.

    Where that does not work, everything travels in messages instead, after one warning.
    """

    def __init__(self) -> None:
        self._segments = Segments()
        self._works: bool | None = None  # not tried yet

    def pack(self, value: object) -> Payload:
        """Pickle `value`; into a segment where it is large."""
        parts = pickled(value)
        if sum(map(len, parts)) >= SHARED_BYTES and self._try():
            try:
                segment = self._segments.take()
                return Shared(segment.write(parts), segment)
            except OSError as error:
                self.stop(str(error))
        return Packed.copy_of(*parts)

    def lend(self, elements: Payload | None, large_results: bool) -> tuple[Space, Segment | None] | None:
        """Return where a task may put its results, with the segment that is to be given back afterwards.

        That is behind its elements, where they lie in a segment, and otherwise in a segment of its own: only
        where large results are to be expected, since each takes a descriptor. None where there is no room.
        """
        if not self._try():
            return None
        if isinstance(elements, Shared):
            return Space(elements.span.address, elements.span.end), elements.segment
        if not large_results:
            return None
        try:
            segment = self._segments.take()
        except OSError as error:
            self.stop(str(error))
            return None
        return Space(segment.address, HEADER), segment

    def stop(self, reason: str) -> None:
        """Use messages from now on."""
        if self._works is not False:
            self._works = False
            logger.warning("no shared memory: %s; data goes through sockets", reason)
            warnings.warn(
                f"parcoll cannot use shared memory ({reason}): data goes through sockets, which is slower",
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Free the segments that no job has."""
        self._segments.close()

    def _try(self) -> bool:
        """Tell whether a segment can be opened by its address, as a worker will do."""
        if self._works is None:
            self._works = hasattr(os, "memfd_create")  # not on macOS, which is nothing to warn of
            if not self._works:
                return False
            try:
                segment = self._segments.take()
                segment.address.map(HEADER)
                segment.give_back()
            except OSError as error:
                self.stop(str(error))
        return self._works
