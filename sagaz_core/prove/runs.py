"""Runs of a saga from its start, each in the world as it was, beside a search that forks it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sagaz_core.prove.endless import NeverEndsError
from sagaz_core.prove.hidden import Hidden
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.search import Search
    from sagaz_core.prove.worlds import Worlds


class Runs:
    """Runs the subject, and counts what that executes.

    `initial`, `reference`, `after` and `before_that` are the numbers of the world as it was, as it is after a run
    without faults, after the last run, and after the one before that. `clean` is the run without faults.
    `hidden` is what runs have changed of the fakes that no snapshot has.
    """

    def __init__(self, subject: Subject, model: SagaModel, search: Search, worlds: Worlds) -> None:
        self.subject = subject
        self.model = model
        self.search = search
        self.worlds = worlds
        self.initial = self.after = self.before_that = worlds.current
        self.reference: int | None = None
        self.clean: Outcome | None = None
        self.executions = 0
        self.hidden = Hidden(subject.world)

    @property
    def completes(self) -> bool:
        """Whether the saga completes without faults, in the order that the engine takes."""
        return self.clean is None or self.clean.status is SagaStatus.COMPLETED

    async def trial(self, plan: FaultPlan, *, closely: bool = False, in_order: Sequence[str] = ()) -> Outcome:
        """Run a plan from the start by the engine as it is, in the world as it was."""
        self.worlds.put(self.initial)
        subject = replace(self.subject, closely=closely, in_order=in_order)
        if self.search.recorded:
            subject = replace(subject, served=self.search.served(plan, self.model))
        reference = None if self.reference is None else self.worlds.reading(self.reference)
        before = self.hidden.look()
        outcome = await run_trial(subject, plan, reference=reference)
        self.hidden.note(before)  # what no snapshot has is not put back: the first run may be the only one to change it
        self.executions += len(outcome.evidence.ledger.entries)
        self.before_that, self.after = self.after, self.worlds.look()
        self.worlds.put(self.initial)
        if (endless := outcome.evidence.endless) is not None:
            raise NeverEndsError(endless.sentence, step=endless.step)
        return outcome
