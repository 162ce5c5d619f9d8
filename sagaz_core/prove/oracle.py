"""The oracle: works out from the model and the plan what must have been undone and what kept, and compares.

Three witnesses: what the engine claims, the ledger (which effects really happened) and the world (the user's probes).
Each rule reads the evidence and yields what is wrong; no rule needs anything from the user. Those on what is left
behind are in `remains`, those on undoing in `undone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from sagaz_core.model import END
from sagaz_core.plugins import results_by_plugin
from sagaz_core.prove.case import Case
from sagaz_core.prove.disorder import without_consequences
from sagaz_core.prove.evidence import Evidence
from sagaz_core.prove.remains import left_behind, world_differs
from sagaz_core.prove.undone import double_undo, out_of_order, undo_without_do, unexpectedly_stuck
from sagaz_core.prove.unordered import fails_out_of_order
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.state import COMPLETED, FAILED, ROLLED_BACK, SagaState

Rule = Callable[[Case], Iterator[Finding]]
Monitor = Callable[[Evidence], Iterable[Finding]]


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Return all that is wrong with the run, or `()`."""
    if evidence.endless is not None:
        return (evidence.endless,)
    if evidence.missed:
        return tuple(_vacuous(evidence))
    case = Case(evidence)
    found = [finding for rule in RULES for finding in rule(case)]
    if evidence.fights and found:
        found = without_consequences(found, evidence, case.undone.keys())
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
    if evidence.claimed is not COMPLETED or case.past_pivot:
        return
    died = bool(evidence.struck("crash", "crash-recorded"))
    for fault in evidence.plan.faults:
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
    faults = evidence.plan.faults
    if not faults or any(f.described.fatal or f.attempt is not None for f in faults) or not evidence.turned_back:
        return
    if evidence.exhausted(undo=False) or evidence.exhausted(undo=True):
        return
    if evidence.fails_at is not None and evidence.fails_at == case.state.failed_step:
        return
    if case.state.failed_step not in case.done:
        delayed = {fault.step for fault in faults}
        order = fails_out_of_order(case.model, evidence.events, delayed=delayed, fights=evidence.fights)
        if order is not None:
            if not any((one.verdict, one.step) == (order.verdict, order.step) for one in evidence.noticed):
                yield order
            return
    error = case.state.error
    yield Finding(
        Verdict.NOT_IDEMPOTENT,
        faults[0].step,
        f"{evidence.plan} alone should have done no harm, but the saga ended {evidence.claimed.value}"
        f"{f' ({error})' if error else ''}",
        _MEMORY if all("crash" in fault.kind for fault in faults) else _KEY,
    )


_KEY = "let the step notice that its effect is there already (an idempotency key), and return the same result"
_MEMORY = (
    "keep what later steps need in the context, not in memory or context variables, and let an action that is run "
    "again find its effect and return the same"
)


def _claim(case: Case) -> Iterator[Finding]:
    evidence, state = case.evidence, case.state
    if evidence.claimed is ROLLED_BACK and state.status is FAILED:
        stuck = ", ".join(state.stuck)
        yield Finding(
            Verdict.LIE,
            state.stuck[0] if state.stuck else None,
            f"the engine says rolled back, but the saga is past its pivot and {stuck} could not be done"
            if case.past_pivot
            else f"the engine says rolled back, but these compensations failed: {stuck}",
            "do not trust this status: look at each compensation's own result",
        )
    elif evidence.claimed is COMPLETED:
        for name in case.model.order:
            if name not in case.alive and name not in state.results:
                yield Finding(Verdict.LIE, name, f"the saga says completed, but {name!r} was not done")


def _not_idempotent(case: Case) -> Iterator[Finding]:
    evidence = case.evidence
    if evidence.claimed is COMPLETED and evidence.reference_changes:
        changes = "; ".join(map(str, evidence.reference_changes[:3]))
        step = next(iter(evidence.plan)).step if evidence.plan else None
        yield Finding(
            Verdict.NOT_IDEMPOTENT,
            step,
            f"after {evidence.plan or 'the crash'} the world is not what it is without it ({changes})",
            "let the action notice that its effect is there already: send an idempotency key",
        )


def _context_leak(case: Case) -> Iterator[Finding]:
    left = case.evidence.left_in_context
    if case.state.status is ROLLED_BACK and left:
        writers = {key: _writer(case.state, key) for key in left}
        by = {key: f", from the compensation of {step!r}" if step else "" for key, step in writers.items()}
        keys = ", ".join(f"{key!r} ({how}{by[key]})" for key, how in left.items())
        steps = set(writers.values())
        yield Finding(
            Verdict.CONTEXT_LEAK,
            steps.pop() if len(steps) == 1 else None,
            f"after the rollback the context is not what it was: {keys}",
            "return new values instead of changing them in place, and let compensations return what they have to say",
        )


def _writer(state: SagaState, key: str) -> str | None:
    """Return the step whose compensation wrote the key last, `None` if none has: it was changed in place."""
    for name, layer in reversed(state.layers.items()):
        if key in layer.set or key in layer.deleted:
            return name.removeprefix("undo:")  # what the steps themselves wrote was taken out
    return None


RULES: tuple[Rule, ...] = (
    _swallowed,
    _benign_was_fatal,
    left_behind,
    _claim,
    world_differs,
    out_of_order,
    double_undo,
    undo_without_do,
    unexpectedly_stuck,
    _not_idempotent,
    _context_leak,
)
