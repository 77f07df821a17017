"""What became of the elements of one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from parcoll.outcome import Outcome


@dataclass
class StepStats:
    """One step: elements that came in, went out, and failed here."""

    label: str
    entered: int = 0
    left: int = 0
    failed: int = 0


@dataclass
class Stats:
    """Counts of the partitions that have come back, whether the consumer took their results or not.

    For every step, `entered == left + failed` where it maps; a filter's difference was filtered
    out, a flatmap's was added.
    """

    steps: list[StepStats] = field(default_factory=list)
    elements_in: int = 0  # source elements that the workers began
    elements_out: int = 0  # results made
    failed: int = 0
    partitions: int = 0  # sent to the engine
    worker_seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one partition."""
        self.elements_in += outcome.read
        self.elements_out += outcome.produced
        self.failed += outcome.failure is not None
        self.worker_seconds += outcome.seconds
        for step, (entered, left) in zip(self.steps, outcome.flows, strict=False):
            step.entered += entered
            step.left += left
        if outcome.failed_step is not None and outcome.failed_step < len(self.steps):
            self.steps[outcome.failed_step].failed += 1
