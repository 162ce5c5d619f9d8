"""The oracle: works out from the model and the plan what must have been undone and what kept, and compares.

Three witnesses: what the engine claims, the ledger (which effects really happened) and the world (the user's probes).
Each rule below reads the evidence and yields what is wrong; no rule needs anything from the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from sagaz_core.events import CompensationFailed, CompensationStarted, CompensationSucceeded, StepFailed, StepSucceeded
from sagaz_core.model import END
from sagaz_core.plugins import results_by_plugin
from sagaz_core.prove.evidence import Evidence
from sagaz_core.prove.ledger import Entry
from sagaz_core.prove.touches import apart_from
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.prove.world import Change

Rule = Callable[["Case"], Iterator[Finding]]
Monitor = Callable[[Evidence], Iterable[Finding]]


class Case:
    """The evidence, with what several rules ask of it worked out once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.model = evidence.model
        self.state = evidence.state
        ledger = evidence.ledger
        done: dict[str, list[int]] = {name: [0] for name in ledger.served}
        undone: dict[str, list[int]] = {}
        for entry in ledger.entries:
            if entry.happened:
                (undone if entry.undo else done).setdefault(entry.step, []).append(entry.ended)
        self.done, self.undone = done, undone
        self.alive = {step for step, moments in done.items() if moments[-1] > undone.get(step, (-1,))[-1]}
        self.succeeded = {event.step for event in evidence.events if isinstance(event, StepSucceeded)}
        self.past_pivot = any(step.pivot and step.name in self.state.results for step in self.model.steps)
        self.expected_stuck = self._expected_stuck()

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


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Return all that is wrong with the run, or `()`."""
    if evidence.endless is not None:
        return (evidence.endless,)
    if evidence.missed:
        return tuple(_vacuous(evidence))
    case = Case(evidence)
    found = [finding for rule in RULES for finding in rule(case)]
    return (*evidence.noticed, *found, *(finding for monitor in monitors() for finding in monitor(evidence)))


@cache
def monitors() -> tuple[Monitor, ...]:
    """Return the monitors that plugins bring."""
    return tuple(monitor for _, brought in results_by_plugin("sagaz_monitors") for monitor in brought)


def _vacuous(evidence: Evidence) -> Iterator[Finding]:
    for fault in evidence.missed:
        ended = f"the saga ended {evidence.claimed.value}"
        if evidence.state.failed_step not in (None, fault.step) and evidence.state.error is not None:
            ended += f" because {evidence.state.failed_step!r} failed: {evidence.state.error}"
        yield Finding(
            Verdict.VACUOUS,
            None if fault.step == END else fault.step,
            f"{fault} never happened: {ended} before it could",
            "give a context with which the saga gets there, or take the fault out of the plan",
        )


def _swallowed(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    if evidence.claimed is not SagaStatus.COMPLETED or case.past_pivot:
        return
    died = bool(evidence.struck("crash", "crash-recorded"))
    for fault in evidence.plan:
        kind = fault.described
        if fault.kind == "cancel" and died:
            continue  # whoever was cancelled died with the process, and the one that resumed knows nothing of it
        if kind.fatal and not kind.undo and fault.attempt is None:
            yield Finding(
                Verdict.LIE,
                fault.step,
                f"the saga says completed although {fault} happened: the error was swallowed",
                "let the error out of the step, or declare how it is recovered from",
            )


def _benign_was_fatal(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    faults = list(evidence.plan)
    if not faults or any(f.described.fatal or f.attempt is not None for f in faults) or not evidence.turned_back:
        return
    if evidence.exhausted(undo=False) or evidence.exhausted(undo=True):
        return
    if evidence.fails_at is not None and evidence.fails_at == case.state.failed_step:
        return
    error = case.state.error
    yield Finding(
        Verdict.NOT_IDEMPOTENT,
        faults[0].step,
        f"{evidence.plan} alone should have done no harm, but the saga ended {evidence.claimed.value}"
        f"{f' ({error})' if error else ''}",
        "let the step notice that its effect is there already (an idempotency key), and return the same result",
    )


def _left_behind(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    if not evidence.turned_back or case.past_pivot:
        return
    for name in case.model.order:
        step = case.model.step(name)
        if name not in case.alive or not step.has_compensation or name in case.expected_stuck:
            continue
        if name in case.state.stuck:
            yield Finding(
                Verdict.STUCK,
                name,
                f"the compensation of {name!r} did not succeed, and its effect is still there",
                "make the compensation succeed however far its action got, and give it retries",
            )
        else:
            yield Finding(Verdict.ORPHAN, name, f"the effect of {name!r} was left behind", _orphan_advice(case, name))


def _orphan_advice(case: Case, name: str) -> str:
    step = case.model.step(name)
    if name in case.evidence.struck("late"):
        return "let the action refuse once its compensation has run: keep a mark under the same key (a tombstone)"
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


def _world_differs(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    if not evidence.world_changes or case.past_pivot or any(_left_behind(case)):
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
    twice = [name for name in evidence.struck(*_UNDONE_AGAIN) if len(case.undone.get(name, ())) > 1]
    culprits = () if evidence.touched is None else evidence.touched.culprits(evidence.world_changes)
    # A run that was killed is compared with one under the same plan that was not: what both leave is not the kill's.
    if kept and not (twice and evidence.touched is None and evidence.reference_changes != ()):
        or_else = f"; or else {_takes_back(culprits)}" if culprits else ""
        yield Finding(
            Verdict.ORPHAN,
            kept[0],
            f"{sentence}, and these steps have no compensation: {', '.join(kept)}",
            f"add a compensation, put the step last, or declare the data append_only in the world{or_else}",
            culprits,
        )
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
    """Yield the steps in doubt that were not undone, and that were seen to change what is left although they failed."""
    if case.evidence.touched is None:
        return
    for name in case.model.order:
        if name not in case.state.ambiguous or name in case.alive or name in case.undone or name in case.state.stuck:
            continue
        if _may_have_left(case, name, changes):
            said = f"{sentence}: {name!r} had changed it when it failed"
            yield Finding(Verdict.ORPHAN, name, said, _orphan_advice(case, name))


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
    if case.undone and case.undone.keys().isdisjoint(case.done):
        names = ", ".join(case.undone)
        return f"let the compensation of {names} do nothing when there is nothing to undo: its action had not happened"
    refused = [event.step for event in case.evidence.events if isinstance(event, StepFailed) and not event.in_doubt]
    if not culprits and refused and refused[-1] not in (None, END):
        return f"let step {refused[-1]!r} refuse before it has an effect: it is not undone; or else {_takes_back(())}"
    return _takes_back(culprits)


def _claim(case: Case) -> Iterator[Finding]:
    evidence, state = case.evidence, case.state
    if evidence.claimed is SagaStatus.ROLLED_BACK and state.status is SagaStatus.FAILED:
        stuck = ", ".join(state.stuck)
        yield Finding(
            Verdict.LIE,
            state.stuck[0] if state.stuck else None,
            f"the engine says rolled back, but the saga is past its pivot and {stuck} could not be done"
            if case.past_pivot
            else f"the engine says rolled back, but these compensations failed: {stuck}",
            "do not trust this status: look at each compensation's own result",
        )
    elif evidence.claimed is SagaStatus.COMPLETED:
        for name in case.model.order:
            if name not in case.alive and name not in state.results:
                yield Finding(Verdict.LIE, name, f"the saga says completed, but {name!r} was not done")


def _order(case: Case) -> Iterator[Finding]:
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


_UNDONE_AGAIN = ("undo-repeat", "undo-crash", "undo-flaky-after", "undo-fail-after", "undo-hang")


def _double_undo(case: Case) -> Iterator[Finding]:
    excused = case.evidence.struck(*_UNDONE_AGAIN)
    for name, moments in case.undone.items():
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


def _undo_without_do(case: Case) -> Iterator[Finding]:
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


def _unexpectedly_stuck(case: Case) -> Iterator[Finding]:
    evidence, state = case.evidence, case.state
    if state.status is SagaStatus.FAILED and not case.past_pivot:
        for name in state.stuck:
            if name not in case.expected_stuck and name not in case.alive:
                yield Finding(
                    Verdict.STUCK,
                    name,
                    f"the compensation of {name!r} did not succeed",
                    "make the compensation succeed when there is nothing to undo",
                )
    for name in evidence.struck("undo-fail", "undo-fail-after", "undo-hang"):
        if evidence.claimed is SagaStatus.ROLLED_BACK and state.status is SagaStatus.ROLLED_BACK:
            yield Finding(
                Verdict.LIE, name, f"the compensation of {name!r} failed for good, and the saga says rolled back"
            )


def _not_idempotent(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    if evidence.claimed is SagaStatus.COMPLETED and evidence.reference_changes:
        changes = "; ".join(map(str, evidence.reference_changes[:3]))
        step = next(iter(evidence.plan)).step if evidence.plan else None
        yield Finding(
            Verdict.NOT_IDEMPOTENT,
            step,
            f"after {evidence.plan or 'the crash'} the world is not what it is without it ({changes})",
            "let the action notice that its effect is there already: send an idempotency key",
        )


def _context_leak(case: Case) -> Iterator[Finding]:
    if case.state.status is SagaStatus.ROLLED_BACK and case.evidence.left_in_context:
        keys = ", ".join(f"{key!r} ({how})" for key, how in case.evidence.left_in_context.items())
        yield Finding(
            Verdict.CONTEXT_LEAK,
            None,
            f"after the rollback the context is not what it was: {keys}",
            "return new values instead of changing them in place, and let compensations return what they have to say",
        )


RULES: tuple[Rule, ...] = (
    _swallowed,
    _benign_was_fatal,
    _left_behind,
    _claim,
    _world_differs,
    _order,
    _double_undo,
    _undo_without_do,
    _unexpectedly_stuck,
    _not_idempotent,
    _context_leak,
)
