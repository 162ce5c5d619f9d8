"""Rules of the judgement: what a saga that turned back leaves behind, whose it is, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sagaz_core.events import StepFailed
from sagaz_core.model import END
from sagaz_core.prove.case import UNDONE_AGAIN, Case
from sagaz_core.prove.touches import apart_from
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.prove.world import Change


def left_behind(case: Case) -> Iterator[Finding]:
    """Yield the steps whose effect is there although the saga turned back."""
    evidence = case.evidence
    if not evidence.turned_back or case.past_pivot:
        return
    left = case.alive & case.model.compensable - case.expected_stuck
    for name in case.model.order if left else ():
        if name not in left:
            continue
        if name in case.state.stuck:
            yield _stuck(case, name)
        else:
            yield Finding(Verdict.ORPHAN, name, f"the effect of {name!r} was left behind", _orphan_advice(case, name))


def _stuck(case: Case, name: str) -> Finding:
    sentence, changes = f"the compensation of {name!r} did not succeed", case.evidence.world_changes
    places = None if case.evidence.touched is None else case.evidence.touched.places(name)
    if changes is None or not places or len(apart_from(changes, places)) < len(changes):
        return Finding(Verdict.STUCK, name, f"{sentence}, and its effect is still there", _stuck_advice(case, name))
    return Finding(
        Verdict.STUCK,
        name,
        f"{sentence}, although the world shows nothing more of its effect",
        "let the compensation succeed when all is undone: what it does after that fails",
    )


def _stuck_advice(case: Case, name: str) -> str:
    if above := [other for other in case.state.stuck if other in case.expected_stuck & case.model.descendants[name]]:
        first = f"let it be undone also while {', '.join(above)}, which could not be undone, is still there"
        if case.evidence.engine != "native":
            return first
        return f'{first}; or declare on_compensation_failure="skip_dependents", which leaves it as it is then'
    return "make the compensation succeed however far its action got, and give it retries"


def _orphan_advice(case: Case, name: str) -> str:
    step = case.model.step(name)
    if name in case.evidence.struck("late"):
        first = "" if step.undone_in_doubt else f'declare in_doubt="compensate" at step {name!r}, and '
        return f"{first}{_REFUSE_WHEN_LATE}: keep a mark under the same key (a tombstone)"
    if case.evidence.cancelled and not case.state.status.ended:
        return "the engine does not compensate when its task is cancelled: shield the run, or resume it elsewhere"
    if name in case.state.ambiguous and case.evidence.engine != "native":
        return (
            "this engine never undoes a step that failed: let the compensation of an earlier step undo this effect "
            "too, if it happened"
        )
    if name in case.state.ambiguous and not step.undone_in_doubt:
        return f'declare in_doubt="compensate" at step {name!r}: its effect may have happened although it failed'
    return "let the compensation undo what the action did"


_REFUSE_WHEN_LATE = "let the action refuse, before it has its effect, once its compensation has run"


def world_differs(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with a world that is not as it was although each effect was undone, as the calls show."""
    evidence = case.evidence
    if not evidence.world_changes or case.past_pivot or any(left_behind(case)):
        return
    if evidence.claimed is SagaStatus.FAILED:
        yield from _more_left_than_said(case, evidence.world_changes)
    if evidence.claimed is not SagaStatus.ROLLED_BACK or case.expected_stuck & case.alive:
        return
    sentence = f"the saga says rolled back, but the world is not as it was ({_first_of(evidence.world_changes)})"
    if failed := list(_failed_with_an_effect(case, evidence.world_changes, sentence)):
        yield from failed
        return
    kept = [name for name in _kept(case) if _may_have_left(case, name, evidence.world_changes)]
    twice = [name for name in evidence.struck(*UNDONE_AGAIN) if len(case.undone.get(name, ())) > 1]
    culprits = () if evidence.touched is None else evidence.touched.culprits(evidence.world_changes)
    # A run that was killed is compared with one under the same plan that was not: what both leave is not the kill's.
    if kept and not (twice and evidence.touched is None and evidence.reference_changes != ()):
        or_else = f"; or else {_takes_back(culprits)}" if culprits or evidence.touched is None else ""
        yield Finding(
            Verdict.ORPHAN,
            kept[0],
            f"{sentence}, and these steps have no compensation: {', '.join(kept)}",
            f"add a compensation, put the step last, or declare the data append_only in the world{or_else}",
            culprits,
        )
    elif (
        not culprits and evidence.touched is not None and (again := evidence.touched.done_again(evidence.world_changes))
    ):
        advice = (
            f"let the action of {', '.join(again)} notice that its effect is there already (an idempotency key): it "
            f"had it more than once, and not all of that was taken back"
        )
        yield Finding(Verdict.LIE, None, sentence, advice, again)
    else:
        yield Finding(Verdict.LIE, None, sentence, _lie_advice(case, twice, kept, culprits), culprits)


def _more_left_than_said(case: Case, changes: Sequence[Change]) -> Iterator[Finding]:
    """A saga that is stuck leaves what its stuck steps did, and nothing else."""
    touched, stuck = case.evidence.touched, case.state.stuck
    places: set[str] = set()
    for name in {*stuck, *_kept(case)}:
        known = None if touched is None else touched.places(name)
        if known is None:
            return
        places |= known
    left = apart_from(changes, places)
    if touched is not None and stuck and left:
        sentence = (
            f"the saga says that only {', '.join(stuck)} could not be undone, but more of the world is not as it was "
            f"({_first_of(left)})"
        )
        if failed := list(_failed_with_an_effect(case, left, sentence)):
            yield from failed
            return
        culprits = touched.culprits(left)
        yield Finding(
            Verdict.LIE,
            None,
            sentence,
            f"{_takes_back(culprits)}, also when {', '.join(stuck)} could not be undone",
            culprits,
        )


def _first_of(changes: Sequence[Change]) -> str:
    return "; ".join(map(str, changes[:3]))


def _kept(case: Case) -> list[str]:
    """Return the steps that are done and that nothing can undo."""
    return [name for name in case.model.order if name in case.alive and not case.model.step(name).has_compensation]


def _may_have_left(case: Case, name: str, changes: Sequence[Change]) -> bool:
    touched = case.evidence.touched
    places = None if touched is None else touched.places(name)
    return places is None or len(apart_from(changes, places)) < len(changes)


def _failed_with_an_effect(case: Case, changes: Sequence[Change], sentence: str) -> Iterator[Finding]:
    """Yield the steps that were seen to change what is left although they failed, and were not undone after that."""
    if case.evidence.touched is None:
        return
    spoilt = case.evidence.spoilt
    for name in case.model.order:
        if name in case.alive or name in case.state.stuck:
            continue
        if (name in case.undone or name not in case.state.ambiguous) and name not in spoilt:
            continue
        if _may_have_left(case, name, changes):
            how = "came late, changed it and failed" if name in spoilt else "had changed it when it failed"
            yield Finding(Verdict.ORPHAN, name, f"{sentence}: {name!r} {how}", _orphan_advice(case, name))


def _takes_back(culprits: Sequence[str]) -> str:
    whose = f"the compensation of {', '.join(culprits)}" if culprits else "each compensation"
    return f"let {whose} take back all that its action did, and nothing else"


def _lie_advice(case: Case, twice: Sequence[str], kept: Sequence[str], culprits: Sequence[str]) -> str:
    if twice:
        or_else = f"what {', '.join(kept)} did has no compensation" if kept else "it does not undo all that was done"
        return (
            f"let the compensation of {', '.join(sorted(twice))} do nothing when there is nothing left to undo: it ran "
            f"twice; or else {or_else}"
        )
    if case.evidence.touched is None and (late := sorted(case.evidence.struck("late") - case.alive)):
        return f"{_REFUSE_WHEN_LATE} ({', '.join(late)} came late, and failed); or else {_takes_back(())}"
    if case.undone and case.undone.keys().isdisjoint(case.done):
        names = ", ".join(case.undone)
        return f"let the compensation of {names} do nothing when there is nothing to undo: its action had not happened"
    refused = [event.step for event in case.evidence.events if isinstance(event, StepFailed) and not event.in_doubt]
    if not culprits and refused and refused[-1] not in (None, END):
        return f"let step {refused[-1]!r} refuse before it has an effect: it is not undone; or else {_takes_back(())}"
    return _takes_back(culprits)
