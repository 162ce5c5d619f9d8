"""What is said of the runs of a saga without faults, and of an outcome in short."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.summary import Found
    from sagaz_core.prove.trial import Subject
    from sagaz_core.prove.world import Change


def shows(outcome: Outcome) -> set[Found]:
    """Return what is wrong with the run, in short."""
    return {(finding.verdict, finding.step) for finding in outcome.findings}


def with_others(failures: Sequence[Outcome], others: Iterable[Outcome]) -> list[Outcome]:
    """Return the failures with those of others that show what none before them does."""
    found = list(failures)
    shown: set[Found] = set().union(*map(shows, found))
    for outcome in others:
        if not shown.issuperset(shows(outcome)):
            found.append(outcome)
            shown |= shows(outcome)
    return found


def runs_differ(one: Outcome, other: Outcome) -> str:
    """Say where the traces of two runs without faults differ first, or return `""`."""
    for line, instead in zip_longest(one.trace, other.trace, fillvalue="(nothing)"):
        if line != instead:
            return f"two runs without faults differ, first at: {line!r}, then {instead!r}"
    return ""


def worlds_differ(changes: Sequence[Change]) -> str:
    """Say how the worlds differ that two runs without faults leave."""
    return f"two runs without faults leave different worlds ({'; '.join(map(str, changes[:3]))})"


def order_matters(changes: Sequence[Change]) -> str:
    """Say how the worlds differ that runs without faults leave in two orders of the steps."""
    what = "; ".join(map(str, changes[:3]))
    return f"steps in another order leave another world ({what}): declare depends_on if they must not"


def why_it_ends(clean: Outcome) -> str:
    """Say how a run without faults ended that did not complete."""
    state = clean.evidence.state
    return f"without faults the saga ends {clean.status.value} at {state.failed_step!r} ({state.error})"


def why_it_fails(clean: Outcome, subject: Subject) -> str:
    """Say the same of a run that did not complete, unless it failed where it was recorded to: then return `""`."""
    return "" if clean.evidence.state.failed_step == subject.fails_at else why_it_ends(clean)
