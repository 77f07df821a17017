"""Imported by a process that is not to wait before a retry."""

from __future__ import annotations

from parcoll.chain import policy

policy.BASE_SECONDS = 0.0
