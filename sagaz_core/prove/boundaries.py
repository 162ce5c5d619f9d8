"""The moments at which a process can die and leave a saga in another state: what each is, and its one string form.

    kill:charge:effect                      in the saga as it goes forward
    end@before+kill:charge:undo-effect      in the rollback that this fault plan makes
    kill:charge#2:start                     the second time
    kill:end                                when the end is recorded

What was written to the store in one batch is one moment; just before a call is the moment when its start was recorded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sagaz_core.errors import PlanError, UsageError, nearest
from sagaz_core.events import (
    CompensationStarted,
    CompensationSucceeded,
    SagaCompleted,
    SagaFailed,
    SagaRolledBack,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan
from sagaz_core.model import END
from sagaz_core.storage.records import unpack_event

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.storage.base import StoredEvent

_PLACES = {
    "start": "when the start of {} was recorded, before it was called",
    "effect": "after the effect of {}, before it was recorded",
    "record": "when {} was recorded as done",
    "undo-start": "when the start of undoing {} was recorded, before its compensation was called",
    "undo-effect": "after {} was undone, before that was recorded",
    "undo-record": "when {} was recorded as undone",
}
_OF_THE_SAGA = {
    "turned": "when it was recorded that the saga turns back",
    END: "when the end of the saga was recorded",
}
# A crash there makes the operation run again, or is one of which the plans know.
_AS_FAULTS = {
    "effect": "crash",
    "record": "crash-recorded",
    "undo-effect": "undo-crash",
    "undo-record": "undo-crash-recorded",
}
_OF_EVENTS = {
    StepStarted.__name__: "start",
    StepSucceeded.__name__: "record",
    CompensationStarted.__name__: "undo-start",
    CompensationSucceeded.__name__: "undo-record",
}
_ENDS = frozenset(kind.__name__ for kind in (SagaCompleted, SagaRolledBack, SagaFailed))
_FORM = re.compile(r"kill:(?:(?P<step>[^@+#:\s]+)(?:#(?P<count>[0-9]{1,6}))?:)?(?P<place>[a-z-]+)")


@dataclass(frozen=True, slots=True)
class Boundary:
    """One moment: `place` at the `step` (None: of the saga as a whole), the `count`-th time, in a run under `plan`."""

    place: str
    step: str | None = None
    count: int = 1
    plan: FaultPlan = NO_FAULTS

    @classmethod
    def parse(cls, text: str) -> Boundary:
        """Read the string form; `str(boundary)` is the inverse. Raises `PlanError`."""
        faults, plus, last = text.rpartition("+")
        match = _FORM.fullmatch(last)
        if match is None:
            raise PlanError(f"{text!r} is no moment to kill at: write kill:step:place, such as kill:charge:effect")
        known = _PLACES if match["step"] else _OF_THE_SAGA
        if match["place"] not in known:
            hint = nearest(match["place"], known) or f"; there are {', '.join(known)}"
            raise PlanError(f"{text!r}: there is no place {match['place']!r} to kill at{hint}")
        count = int(match["count"] or 1)
        if count < 1:
            raise PlanError(f"{text!r}: times count from 1")
        return cls(match["place"], match["step"], count, FaultPlan.parse(faults) if plus else NO_FAULTS)

    def __str__(self) -> str:
        return f"{self.plan}+kill:{self.label}" if self.plan else f"kill:{self.label}"

    @property
    def label(self) -> str:
        """The moment without the plan, as a run names those that it comes to."""
        if self.step is None:
            return self.place
        return f"{self.step}{f'#{self.count}' if self.count > 1 else ''}:{self.place}"

    @property
    def sentence(self) -> str:
        """The moment as a person says it."""
        if self.step is None:
            return _OF_THE_SAGA[self.place]
        again = f", time {self.count}" if self.count > 1 else ""
        return _PLACES[self.place].format(repr(self.step)) + again

    @property
    def struck(self) -> FaultPlan:
        """The plan with the crash itself, as far as plans know it."""
        kind = _AS_FAULTS.get(self.place)
        if kind is None or self.step is None:
            return self.plan
        return FaultPlan((*self.plan, Fault(self.step, kind)))

    def check(self, model: SagaModel) -> None:
        """Raise `PlanError` when the saga has no such step, or it cannot have this, or the plan does not fit."""
        check_plan(self.plan, model)
        if self.step is not None and self.step not in model:
            raise PlanError(f"{self}: saga {model.name!r} has no step {self.step!r}{nearest(self.step, model.names)}")
        if self.place.startswith("undo") and self.step is not None and not model.step(self.step).has_compensation:
            raise PlanError(f"{self}: step {self.step!r} has no compensation")


def check_plan(plan: FaultPlan, model: SagaModel) -> None:
    """Raise `PlanError` for a plan that does not fit, `UsageError` for one that has a crash of its own."""
    plan.check(model)
    for fault in plan:
        if "crash" in fault.kind:
            raise UsageError(f"{fault}: a run that is killed has no other crash; take it out of the plan")


class Labels:
    """Names the moments of one run. It counts: a step's second start is `charge#2:start`."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def effect(self, step: str, *, undo: bool) -> str:
        """Name the moment at which an operation has returned."""
        return self._counted("undo-effect" if undo else "effect", step)

    def written(self, events: Iterable[StoredEvent]) -> list[str]:
        """Return all the names of the moment at which these were written."""
        found = []
        for event in events:
            place = _OF_EVENTS.get(event.kind)
            if place is not None and event.step is not None:
                found.append(self._counted(place, event.step))
            elif event.kind in _ENDS:
                found.append(END)
            elif event.kind == StepFailed.__name__ and cast(StepFailed, unpack_event(event)).final:
                found.append("turned")
        return found

    def _counted(self, place: str, step: str) -> str:
        self._counts[place, step] += 1
        return Boundary(place, step, self._counts[place, step]).label


def boundaries(model: SagaModel, plan: FaultPlan = NO_FAULTS, *, forward: bool | None = None) -> list[Boundary]:
    """Return the moments of a run under the plan, each once, as far as the saga's description tells.

    Of a plan that turns the saga back only those from there on, unless `forward` asks for the others too. Retries are
    not in it. Where the saga is a DAG, only what certainly is done before it turns back.
    """
    plan = plan.completed()
    check_plan(plan, model)
    turned = _turned_at(plan, model)
    if turned is None:
        return [*_forward(model, model.order, plan), Boundary(END, plan=plan)]
    before = [name for name in model.order if turned == END or name in model.ancestors[turned]]
    found = list(_forward(model, before, plan)) if forward else []
    if any(model.step(name).pivot for name in before):
        return [*found, Boundary(END, plan=plan)]
    if turned != END and model.step(turned).undone_in_doubt:
        before.append(turned)
    return [*found, Boundary("turned", plan=plan), *_back(model, before, plan), Boundary(END, plan=plan)]


def default_plans(model: SagaModel) -> tuple[FaultPlan, ...]:
    """Return the plans under which a saga is killed: none, its failure at its end, and that of its last step.

    With a pivot, no failure behind it is rolled back; then the failure is that of the pivot itself.
    """
    pivot = next((name for name in model.order if model.step(name).pivot), None)
    if pivot is not None:
        return NO_FAULTS, FaultPlan((Fault(pivot, "before"),))
    last = model.order[-1]
    return NO_FAULTS, FaultPlan((Fault(END, "before"),)), FaultPlan((Fault(last, "before"),))


def _turned_at(plan: FaultPlan, model: SagaModel) -> str | None:
    steps = [fault.step for fault in plan if fault.described.fatal and not fault.described.undo]
    return min(steps, key=(*model.order, END).index, default=None)


def _forward(model: SagaModel, steps: Iterable[str], plan: FaultPlan) -> Iterator[Boundary]:
    for index, name in enumerate(steps):
        if index == 0 or not model.linear:  # in a chain, a start is recorded together with the end of the step before
            yield Boundary("start", name, plan=plan)
        yield Boundary("effect", name, plan=plan)
        yield Boundary("record", name, plan=plan)


def _back(model: SagaModel, steps: Iterable[str], plan: FaultPlan) -> Iterator[Boundary]:
    stuck = {fault.step for fault in plan if fault.described.undo and fault.described.fatal}
    left: set[str] = set()
    for name in reversed(list(steps)):
        if not model.step(name).has_compensation or name in left:
            continue
        yield Boundary("undo-start", name, plan=plan)
        if name not in stuck:
            yield Boundary("undo-effect", name, plan=plan)
            yield Boundary("undo-record", name, plan=plan)
        elif model.on_compensation_failure == "fail_fast":
            return
        elif model.on_compensation_failure == "skip_dependents":
            left |= model.ancestors[name]
