"""Trying a recorded saga: the faithful replay, and every single-fault plan from its recorded states."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CannotStoreError, InjectedFaultError, StepRejected
from sagaz_core.events import (
    CompensationFailed,
    Delta,
    ErrorInfo,
    Event,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan, single_fault_plans
from sagaz_core.model import END, SagaModel
from sagaz_core.prove.normalise import Normaliser
from sagaz_core.prove.trace import trace_rows
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.replay.start import start_at
from sagaz_core.state import SagaStatus
from sagaz_core.storage.codec import encode

if TYPE_CHECKING:
    from sagaz_core.engine.run import Served
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.recording.base import Recording


def recorded_plans(
    recording: Recording, model: SagaModel, kinds: Iterable[str], *, from_step: str | None = None
) -> list[FaultPlan]:
    """Return the single-fault plans that the recorded saga can have, as far as it got.

    A saga that was turned back at a step is turned back there again to try the compensations, but for those that a
    pivot had made final by then: for them the pivot fails. With `from_step`, only plans that strike at or after it, or
    in the rollback.
    """
    reached = [name for name in recording.reached if name in model]
    turned = None if recording.completed else recording.failed_step or (reached[-1] if reached else None)
    final = _final_before(turned, recording, model)
    plans = []
    for plan in single_fault_plans(model, kinds):
        last = plan.faults[-1]
        if turned is not None:
            if last.step not in reached:
                continue
            if last.described.undo and last.step in final:
                if plan.faults[0].step not in reached:
                    continue
            elif last.described.undo:
                if turned not in model or last.step not in model.ancestors[turned]:
                    continue
                plan = FaultPlan((Fault(turned, "before"), last))
        forward = not last.described.undo and last.step != END
        if from_step is not None and forward and last.step not in model.descendants[from_step] | {from_step}:
            continue
        plans.append(plan)
    return plans


def _final_before(turned: str | None, recording: Recording, model: SagaModel) -> set[str]:
    """Return the steps that no failure at this step undoes any more: a pivot behind them was done."""
    if turned is None or turned not in model:
        return set()
    done = [one.step for one in recording.served_before(turned) if one.step in model]
    return {step for pivot in done if model.step(pivot).pivot for step in (pivot, *model.ancestors[pivot])}


def checkpoint_of(plan: FaultPlan, model: SagaModel) -> str:
    """Return the step at which a run under this plan begins: the first that a fault strikes, or the end."""
    forward = [fault.step for fault in plan.completed() if not fault.described.undo and fault.step != END]
    if not forward:
        return END
    return min(forward, key=model.order.index)


@dataclass(frozen=True, slots=True)
class RecordedSubject:
    """A recording, and how its saga is made now. `override` is laid over the recorded context."""

    recording: Recording
    subject: Subject
    override: Mapping[str, Any]
    from_step: str | None = None
    strict: bool = False

    def at(self, plan: FaultPlan, model: SagaModel) -> Subject:
        """Return what to run under the plan: from its checkpoint, with the recorded results of the steps before it."""
        recording = self.recording
        if not plan and self.from_step is None:
            return replace(self.subject, context={**recording.context, **self.override})
        step = self.from_step or checkpoint_of(plan, model)
        if step == END:
            served = recording.served()
            checkpoint = recording.state_at(len(recording.events) - 1)
        else:
            served = recording.served_before(step)
            checkpoint = recording.state_before(step) if step in recording.reached else recording.state_at(0)
        start = start_at(checkpoint, self.override, model=model, strict=self.strict)
        kept = {key: value for key, value in recording.context.items() if key not in self.override}
        by_step = {one.step: one for one in start.served}
        known = tuple(by_step.get(one.step, one) for one in served if one.step in model)
        return replace(self.subject, context={**kept, **self.override}, served=known)


@dataclass(frozen=True, slots=True)
class Faithful:
    """The faithful replay: `differences` of shape (a line each), and `drift`: `(where, recorded, now)` values."""

    outcome: Outcome
    differences: tuple[str, ...]
    drift: tuple[tuple[str, Any, Any], ...]


async def run_faithful(recorded: RecordedSubject) -> Faithful:
    """Run the current code from the recorded start, with what failed then failing again, and compare.

    A failure of then is raised where it was, instead of the call: what it came from (an outage) is not here. A saga
    that was recorded under a fault plan runs under it again.
    """
    recording = recorded.recording
    plan = FaultPlan.parse(recording.record.plan) if recording.record.plan else NO_FAULTS
    failures = () if plan else RaiseRecorded.of(recording.events)
    subject = replace(
        recorded.subject,
        context={**recording.context, **recorded.override},
        interceptors=(*recorded.subject.interceptors, *failures),
    )
    outcome = await run_trial(subject, plan)
    return Faithful(outcome, shape_differences(recording, outcome), value_drift(recording, outcome))


class RaiseRecorded:
    """An interceptor that raises the recorded failure of an attempt in place of making it."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._failures: dict[tuple[str, str, int], tuple[ErrorInfo, bool]] = {}
        for event in events:
            if isinstance(event, StepFailed) and event.step is not None and event.attempt:
                kind = "end" if event.step == END else "action"
                self._failures[kind, event.step, event.attempt] = event.error, event.in_doubt
            elif isinstance(event, CompensationFailed):
                self._failures["compensation", event.step, event.attempt] = event.error, True

    @classmethod
    def of(cls, events: Iterable[Event]) -> tuple[RaiseRecorded, ...]:
        """Return it, or nothing when nothing failed then: most recorded sagas completed."""
        made = cls(events)
        return (made,) if made._failures else ()

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, or fail as then."""
        found = self._failures.get((call.kind, call.step, call.attempt))
        if found is None:
            return await proceed()
        error, in_doubt = found
        raise _exception(error) if in_doubt else StepRejected(error.message)


def _exception(error: ErrorInfo) -> Exception:
    """Return an exception of the recorded type if it is one of this process that takes a message, else a stand-in."""
    module, _, qualname = error.type.partition(":")
    found: Any = builtins if module == "builtins" else sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Exception) and found.__init__ is Exception.__init__:
        return found(error.message)
    return InjectedFaultError(str(error))


def shape_differences(recording: Recording, outcome: Outcome) -> tuple[str, ...]:
    """Say in what the run's steps, order or status differ from the recorded ones; `()` when they do not.

    Of a recorded saga whose process died, only what it did is compared.
    """
    model = outcome.evidence.model
    recorded = model if model.fingerprint == recording.record.fingerprint else recording.model
    found = list(model.differences(recorded))
    then: list[tuple[str, str]] = []
    now = then
    if recorded is not model or _kinds(recording.events) != _kinds(outcome.events):
        then, now = _shape(recorded, recording.events), _shape(model, outcome.events)
    if not recording.status.ended:
        missing = [row for row in then if row not in now]
        return (*found, *(f"{mark} {step!r} was recorded and did not happen" for mark, step in missing))
    if recording.status is not outcome.status:
        why = outcome.evidence.state.error
        found.append(f"it ended {recording.status.value} then, {outcome.status.value} now{f' ({why})' if why else ''}")
    if then != now:
        found += [f"{mark} {step!r} was recorded and did not happen" for mark, step in then if (mark, step) not in now]
        found += [f"{mark} {step!r} happened and was not recorded" for mark, step in now if (mark, step) not in then]
        if sorted(then) == sorted(now):
            order = [f"{' '.join(f'{mark} {step}' for mark, step in rows)}" for rows in (then, now)]
            found.append(f"the order was {order[0]}, it is {order[1]}")
    return tuple(found)


class _Mute(Normaliser):
    """For a shape, in which nothing is read but marks and steps."""

    def text(self, text: str) -> str:
        return ""

    def value(self, value: Any, key: str = "", depth: int = 0) -> str:
        return ""


def _kinds(events: Iterable[Event]) -> list[tuple[type[Event], str | None, object]]:
    """Return what a shape is made of: where these are the same, so are the shapes."""
    return [
        (type(event), getattr(event, "step", None), getattr(event, "final", None))
        for event in events
        if not isinstance(event, StepStarted)
    ]


def _shape(model: SagaModel, events: Iterable[Event]) -> list[tuple[str, str]]:
    steps = {*model.names, END}
    seen = [event for event in events if getattr(event, "step", None) in steps]
    return [(mark, step) for mark, step, _ in trace_rows(model, seen, _Mute())]


def value_drift(recording: Recording, outcome: Outcome) -> tuple[tuple[str, Any, Any], ...]:
    """Return the results and final context values that differ from the recorded ones."""
    rows: list[tuple[str, Any, Any]] = []
    then = {event.step: event.result for event in recording.events if isinstance(event, StepSucceeded)}
    now = {event.step: event.result for event in outcome.events if isinstance(event, StepSucceeded)}
    for step in then:
        if step in now and not _plainly_same(then[step], now[step]):
            _drift(f"result of {step}", then[step], now[step], rows)
    if recording.status is SagaStatus.COMPLETED and outcome.status is SagaStatus.COMPLETED:
        seen = {key for value in then.values() if isinstance(value, Mapping) for key in value}
        was, is_now = recording.state.context, outcome.context
        for key in was:
            if key not in seen and not _plainly_same(was[key], is_now.get(key)):
                _drift(f"context {key}", was[key], is_now.get(key), rows)
    return tuple(rows)


def _drift(where: str, then: Any, now: Any, rows: list[tuple[str, Any, Any]]) -> None:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*then, *(key for key in now if key not in then)]:
            _drift(f"{where}.{key}", then.get(key), now.get(key), rows)
    elif not _same(then, now):
        rows.append((where, then, now))


_PLAIN = frozenset({str, int, bool, bytes, type(None)})


def _plainly_same(then: Any, now: Any) -> bool:
    kind = type(then)
    return kind is type(now) and kind in _PLAIN and bool(then == now)


def _same(then: Any, now: Any) -> bool:
    if type(then) in _PLAIN:
        return _plainly_same(then, now)
    try:
        return encode(then) == encode(now) or bool(then == now and type(then) is type(now))
    except Exception:  # a value of now that cannot be stored, or a broken __eq__
        return False


async def not_as_recorded(subject: Subject, recorded: Iterable[Served]) -> str:
    """Say why the recorded steps have to be taken from the record; or return `""`, if running them comes to the same.

    Only when they are run do they have their effects in this world, which then shows whether those are undone.
    """
    world = subject.world
    if world is None or not world.restorable:
        return f"{_NOT_COMPARED}, which are not run, never touched it"
    saved = world.save()
    try:
        outcome = await run_trial(subject)
    finally:
        world.restore(saved)
    now = {event.step: (event.result, event.delta) for event in outcome.events if isinstance(event, StepSucceeded)}
    for served in recorded:
        if served.step not in now:
            return f"{_NOT_COMPARED} were not run: without faults {served.step!r} does not succeed in it"
        if not _come_to_the_same((served.result, served.delta), now[served.step]):
            return (
                f"{_NOT_COMPARED} were not run: {served.step!r} returns something else in it than was recorded. "
                f"Let the fakes give what the record has"
            )
    return ""


_NOT_COMPARED = "the world was not compared, because the recorded steps"


def _come_to_the_same(one: tuple[Any, Delta], other: tuple[Any, Delta]) -> bool:
    def data(result: Any, delta: Delta) -> bytes:
        return encode([result, dict(sorted(delta.set.items())), sorted(delta.deleted)])

    try:
        return data(*one) == data(*other)
    except CannotStoreError:
        return False
