"""No pause before a retry: workers import this module by its name, which of a `conftest` is that of many."""

from __future__ import annotations


def no_pause() -> None:
    from parcoll.chain import policy
    from parcoll.worker import subworker

    policy.BASE_SECONDS = 0.0
    line = "import parcoll.chain.policy; parcoll.chain.policy.BASE_SECONDS = 0.0\n"
    assert "\nmain(" in subworker._BOOT
    subworker._BOOT = subworker._BOOT.replace("\nmain(", f"\n{line}main(")
