"""The evidence of one run as the rules of the judgement read it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from sagaz_core.events import StepSucceeded
from sagaz_core.model import END

if TYPE_CHECKING:
    from sagaz_core.prove.evidence import Evidence

UNDONE_AGAIN = ("undo-repeat", "undo-crash", "undo-flaky-after", "undo-fail-after", "undo-hang")
"""The kinds under which a compensation may run again although it had its effect."""


class Case:
    """The evidence, with what several rules ask of it worked out once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.model = evidence.model
        self.state = evidence.state
        ledger = evidence.ledger
        done: dict[str, list[int]] = {name: [0] for name in ledger.served}
        undone: dict[str, list[int]] = {}
        for step, undo, _, _, ended, happened in ledger.entries:
            if happened:
                (undone if undo else done).setdefault(step, []).append(ended)
        self.done, self.undone = done, undone
        alive = {step for step, moments in done.items() if moments[-1] > undone.get(step, (-1,))[-1]}
        self.alive = alive - evidence.refused
        self.past_pivot = not self.model.pivots.isdisjoint(self.state.results)
        self.expected_stuck = self._expected_stuck()

    @cached_property
    def succeeded(self) -> set[str]:
        """The steps of which an attempt succeeded, as the events say."""
        return {event.step for event in self.evidence.events if isinstance(event, StepSucceeded)}

    def _expected_stuck(self) -> set[str]:
        """The steps that may be left because a fault says so, and those that the failure policy leaves with them."""
        evidence = self.evidence
        struck = evidence.struck("undo-fail", "undo-fail-after", "undo-hang") | evidence.exhausted(undo=True)
        expected = set(struck)
        for step in struck:
            if self.model.on_compensation_failure == "fail_fast":
                # What is in doubt is undone too, whether or not its effect happened.
                expected |= (self.alive | set(self.state.ambiguous)) - self.model.descendants[step]
            elif self.model.on_compensation_failure == "skip_dependents":
                expected |= self.model.ancestors[step]
        if self.past_pivot:
            expected |= {fault.step for fault in evidence.plan if fault.step != END}
        return expected
