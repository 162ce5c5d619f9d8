"""The two orders of a rollback: newest first, as the engine has it, and oldest first, as far as the saga allows.

A compensation that needs another step's effect, or what that step put into the context, and whose step does not depend
on it, is right in the first order by luck. In a chain there is one order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sagaz_core.engine.rollback import oldest_first
from sagaz_core.events import CompensationStarted
from sagaz_core.prove.trial import describe, run_trial

if TYPE_CHECKING:
    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.trial import Subject
    from sagaz_core.prove.world import Reading

OLDEST_FIRST = "oldest first"
"""What stands for the second order where it was not run."""


def has_choice(outcome: Outcome) -> bool:
    """Whether the saga allows another order than the one in which the run undid its steps."""
    evidence = outcome.evidence
    if evidence.model.linear or evidence.missed:
        return False
    tried = list(dict.fromkeys(event.step for event in evidence.events if isinstance(event, CompensationStarted)))
    return oldest_first(tried, evidence.model) != tried


async def in_both_orders(subject: Subject, plan: FaultPlan, *, reference: Reading | None = None) -> Outcome:
    """Run a plan, and if that is sound once more, undone in the other order. Return what is not sound, else the first.

    The fakes of the world are put back for each run. What they do not show may be left from the run before, so it is
    the order that is blamed only if a further run, newest first, is sound again.
    """
    adapter, model = await describe(subject)
    if model.linear or adapter.one_order:
        return await run_trial(subject, plan, reference=reference)
    saved = subject.world.save() if subject.world else {}

    async def again(*, oldest_first: bool) -> Outcome:
        if subject.world:
            subject.world.restore(saved)
        return await run_trial(replace(subject, oldest_first=oldest_first), plan, reference=reference)

    outcome = await run_trial(subject, plan, reference=reference)
    if outcome.findings or not has_choice(outcome):
        return outcome
    other = await again(oldest_first=True)
    if not other.findings or (await again(oldest_first=False)).findings:
        return outcome
    return other
