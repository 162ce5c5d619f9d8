"""The two orders of a rollback: newest first, as the engine has it, and oldest first, as far as the saga allows.

A compensation that needs another step's effect, or what that step put into the context, and whose step does not depend
on it, is right in the first order by luck. In a chain there is one order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.engine.rollback import oldest_first
from sagaz_core.events import CompensationStarted

if TYPE_CHECKING:
    from sagaz_core.prove.outcome import Outcome

OLDEST_FIRST = "oldest first"
"""What stands for the second order where it was not run."""


def has_choice(outcome: Outcome) -> bool:
    """Whether the saga allows another order than the one in which the run undid its steps."""
    evidence = outcome.evidence
    if evidence.model.linear or evidence.missed:
        return False
    tried = list(dict.fromkeys(event.step for event in evidence.events if isinstance(event, CompensationStarted)))
    return oldest_first(tried, evidence.model) != tried
