"""What is wrong only because a step came before another one, whose keys it reads.

That nothing orders the two is reported by itself, and is what is to be changed. Until then the reader acts on a context
that it is not made for: it fails, or has an effect that its compensation does not find again, or another one when it is
delivered again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from sagaz_core.events import CompensationStarted, CompensationSucceeded, StepStarted, StepSucceeded
from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set

    from sagaz_core.events import Event
    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.unordered import Fight


class Place(Enum):
    """Where an attempt of the reader begins: before the writer has begun, before its keys are there, or after that."""

    BEFORE = 0
    WITHIN = 1
    AFTER = 2


def places_of(events: Iterable[Event], fights: Iterable[Fight]) -> dict[Fight, list[Place]]:
    """Return where the attempts of each reader began."""
    found: dict[Fight, list[Place]] = {pair: [] for pair in fights}
    at: dict[str, Place] = {}
    for event in events:
        if isinstance(event, StepSucceeded):
            at[event.step] = Place.AFTER
        elif isinstance(event, StepStarted):
            at.setdefault(event.step, Place.WITHIN)
            for (reader, writer), began in found.items():
                if reader == event.step:
                    began.append(at.get(writer, Place.BEFORE))
    return found


def came_first(events: Iterable[Event], fights: Iterable[Fight]) -> frozenset[Fight]:
    """Return the pairs of which the reader's last attempt did not see what the writer writes."""
    found = places_of(events, fights)
    return frozenset(pair for pair, began in found.items() if began and began[-1] is not Place.AFTER)


def torn(events: Iterable[Event], fights: Iterable[Fight]) -> bool:
    """Whether a reader came neither before the writer nor after it, or once so and once so: as in no run by itself.

    Where each operation is done before the next one begins.
    """
    return any(Place.WITHIN in began or len(set(began)) > 1 for began in places_of(events, fights).values())


def undone_late(events: Iterable[Event], fights: Iterable[Fight]) -> set[str]:
    """Return the readers that were undone when what the writer had written was gone."""
    undone: set[str] = set()
    found: set[str] = set()
    for event in events:
        if isinstance(event, CompensationSucceeded):
            undone.add(event.step)
        elif isinstance(event, CompensationStarted):
            found.update(reader for reader, writer in fights if reader == event.step and writer in undone)
    return found


def without_consequences(found: Sequence[Finding], evidence: Evidence, undone: Set[str]) -> list[Finding]:
    """Leave out what may be wrong because a reader came first, or one behind it; `undone` steps were undone."""
    model, events, fights = evidence.model, evidence.events, evidence.fights
    began: dict[str | None, set[Place]] = {}
    for (reader, _), places in places_of(events, fights).items():
        began.setdefault(reader, set()).update(places)
    early = {reader for reader, _ in fights if began[reader] - {Place.AFTER}} | undone_late(events, fights)
    touched = early.union(*(model.descendants[reader] for reader in early))
    places_then = began.get(evidence.state.failed_step, ())
    failed_early = evidence.turned_back and len(places_then) > 1  # it has failed at first because it came too early
    return [
        finding
        for finding in found
        if not (_follows(finding, touched, undone) or (failed_early and finding.verdict is Verdict.NOT_IDEMPOTENT))
    ]


def _follows(finding: Finding, touched: Set[str], undone: Set[str]) -> bool:
    if finding.verdict is Verdict.LIE and finding.step is None:
        return not finding.culprits or not touched.isdisjoint(finding.culprits)
    if finding.verdict is Verdict.ORPHAN:
        return finding.step in touched & undone  # what is not undone at all is left in any order
    return finding.verdict is Verdict.STUCK and finding.step in touched
