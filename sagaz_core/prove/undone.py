"""Rules of the judgement: what was undone, in which order and how often."""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import pairwise

from sagaz_core.events import CompensationFailed, CompensationStarted, CompensationSucceeded
from sagaz_core.prove.case import UNDONE_AGAIN, Case
from sagaz_core.prove.ledger import Entry
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.state import FAILED, ROLLED_BACK


def out_of_order(case: Case) -> Iterator[Finding]:
    """Yield the steps that were undone out of order, or behind a pivot."""
    if case.past_pivot:
        pivots = [step.name for step in case.model.steps if step.pivot and step.name in case.state.results]
        kept = set(pivots).union(*(case.model.ancestors[pivot] for pivot in pivots))
        for name in case.undone:
            if name in kept:
                yield Finding(Verdict.OUT_OF_ORDER, name, f"{name!r} was undone although the saga is past its pivot")
        return
    for entry, dependants in reversed(list(_undone_before(case))):
        # One that was tried before this and could not be undone is not out of order.
        for dependant in sorted(dependants - _failed_before(case, entry.step), key=case.model.order.index):
            if _alive_at(case, dependant, entry.began):
                yield Finding(
                    Verdict.OUT_OF_ORDER,
                    entry.step,
                    f"{entry.step!r} was undone while {dependant!r}, which depends on it, was still done",
                    "undo dependants first: check depends_on, and what the engine orders compensations by",
                )
                break


def _undone_before(case: Case) -> Iterator[tuple[Entry, Set[str]]]:
    """Yield the compensations that came before those of dependants, the last one first, with these.

    One that is never undone, or not after this, is an orphan if it is still there, and not out of order.
    """
    later: set[str] = set()
    for entry in reversed(case.evidence.ledger.entries):
        if entry.undo:
            if not later.isdisjoint(dependants := case.model.descendants[entry.step]):
                yield entry, dependants & later
            later.add(entry.step)


def _failed_before(case: Case, step: str) -> set[str]:
    """Return the steps whose compensation had failed by when that of this step first ran."""
    failed: set[str] = set()
    for event in case.evidence.events:
        if isinstance(event, CompensationFailed):
            failed.add(event.step)
        elif isinstance(event, (CompensationStarted, CompensationSucceeded)) and event.step == step:
            return failed
    return set()


def _alive_at(case: Case, step: str, moment: int) -> bool:
    done = [at for at in case.done.get(step, ()) if at < moment]
    undone = [at for at in case.undone.get(step, ()) if at < moment]
    return bool(done) and done[-1] > (undone[-1] if undone else -1)


def double_undo(case: Case) -> Iterator[Finding]:
    """Yield the steps that were undone twice, where no fault asked for it."""
    twice = [(name, moments) for name, moments in case.undone.items() if len(moments) > 1]
    excused = case.evidence.struck(*UNDONE_AGAIN) if twice else ()
    for name, moments in twice:
        if name in excused:
            continue
        done = case.done.get(name, [])
        for earlier, later in pairwise(moments):
            if not any(earlier < moment < later for moment in done):
                yield Finding(
                    Verdict.DOUBLE_UNDO,
                    name,
                    f"{name!r} was undone twice",
                    "the engine must not run a compensation again that has succeeded",
                )
                break


def undo_without_do(case: Case) -> Iterator[Finding]:
    """Yield the steps that were undone and never done."""
    if case.undone.keys() <= case.done.keys():
        return
    for name in case.undone:
        if name in case.done:
            continue
        if case.model.step(name).undone_in_doubt and name not in case.succeeded and case.state.attempts.get(name):
            continue  # that is what in_doubt="compensate" asks for: the engine cannot know
        yield Finding(
            Verdict.UNDO_WITHOUT_DO,
            name,
            f"{name!r} was undone although it was never done",
            "compensate only steps that completed, or whose effect is in doubt",
        )


def unexpectedly_stuck(case: Case) -> Iterator[Finding]:
    """Yield the steps whose compensation fails where there is nothing to undo, or whose failure is hidden."""
    evidence, state = case.evidence, case.state
    if state.status is FAILED and not case.past_pivot:
        for name in state.stuck:
            if name not in case.expected_stuck and name not in case.alive:
                yield Finding(
                    Verdict.STUCK,
                    name,
                    f"the compensation of {name!r} did not succeed",
                    "make the compensation succeed when there is nothing to undo",
                )
    for name in evidence.struck("undo-fail", "undo-fail-after", "undo-hang"):
        if evidence.claimed is ROLLED_BACK and state.status is ROLLED_BACK:
            yield Finding(
                Verdict.LIE, name, f"the compensation of {name!r} failed for good, and the saga says rolled back"
            )
