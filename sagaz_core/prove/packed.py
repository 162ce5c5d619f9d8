"""Plans for a saga that cannot be forked: many benign faults at once, and single ones in the order that finds most.

A benign fault must change nothing, so one kind at every step at once is as good as one after the other, until it fails;
then it is bisected. After them come the single faults, those first that find most, the last step first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from sagaz_core.faults.kinds import KINDS, why_not
from sagaz_core.faults.plan import Fault, FaultPlan, single_fault_plans
from sagaz_core.model import END
from sagaz_core.prove.scripts import ORDER, spared

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel

_PLACE = {kind: place for place, kind in enumerate(ORDER)}


def packed_plans(model: SagaModel, kinds: Iterable[str], first: str | None = None) -> list[FaultPlan]:
    """Return one plan a benign kind, with a fault at every step that can have it at once."""
    wanted = set(kinds)
    plans = []
    for kind in ORDER:
        described = KINDS[kind]
        if kind not in wanted or described.fatal:
            continue
        steps = [step.name for step in model.steps if not why_not(described, step)]
        if described.undo:
            faults = _undone(model, tuple(Fault(name, kind) for name in steps))
        else:
            early = spared(model, first)
            steps = [name for name in steps if name not in early]
            faults = tuple(Fault(name, kind) for name in (_in_a_chain(steps, model) if "crash" in kind else steps))
        if len(faults) > 1:
            plans.append(FaultPlan(faults))
    return plans


@lru_cache(maxsize=64)
def few_plans(model: SagaModel) -> tuple[FaultPlan, ...]:
    """Return at most 2N + 10 plans: the packed ones, and each step failed after and before; what finds most first."""
    fatal = [FaultPlan((Fault(step, kind),)) for kind in ("after", "before") for step in reversed(model.order)]
    return tuple(finding_most_first([*packed_plans(model, KINDS), *fatal], model))


def finding_most_first(plans: Iterable[FaultPlan], model: SagaModel) -> list[FaultPlan]:
    """Return the plans with those in front that find most of what can be wrong.

    That is a lost acknowledgement after which all is undone; all done twice, and all undone twice; and then the other
    lost acknowledgements, those behind a pivot last, because nothing is undone after them.
    """
    pivots = [step.name for step in model.steps if step.pivot]
    behind = frozenset[str]().union(*(model.descendants[pivot] for pivot in pivots))
    given = list(plans)
    lost = [plan for plan in given if len(plan.faults) == 1 and _last(plan).kind == "after"]
    lost.sort(key=lambda plan: _last(plan).step in behind)
    twice = [plan for plan in given if sum(fault.kind in ("repeat", "undo-repeat") for fault in plan) > 1]
    return list(dict.fromkeys([*lost[:1], *twice, *lost[1:], *given]))


def _in_a_chain(steps: Iterable[str], model: SagaModel) -> list[str]:
    """Those that never run side by side: a process in which two of them run dies only once."""
    chosen: list[str] = []
    for step in steps:
        if all(other in model.ancestors[step] for other in chosen):
            chosen.append(step)
    return chosen


def _undone(model: SagaModel, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Put what makes the compensations run before their faults: the end of the saga, or its first pivot."""
    pivots = [name for name in model.order if model.step(name).pivot]
    if not pivots:
        return (Fault(END, "before"), *faults)
    before = model.ancestors[pivots[0]]
    return (Fault(pivots[0], "before"), *(fault for fault in faults if fault.step in before))


def ordered(model: SagaModel, plans: Iterable[FaultPlan]) -> list[FaultPlan]:
    """Return plans of a fault in the order in which they find most: by kind, the last step first."""
    places = {name: place for place, name in enumerate(model.order)}

    def place(plan: FaultPlan) -> tuple[int, int]:
        last = plan.faults[-1]
        return _PLACE[last.kind], -places.get(last.step, len(places))

    return sorted(plans, key=place)


def single_plans(model: SagaModel, kinds: Iterable[str], first: str | None = None) -> list[FaultPlan]:
    """Return every plan of one fault, in the order in which they find most."""
    early = spared(model, first)
    plans = [
        plan for plan in single_fault_plans(model, kinds) if _last(plan).described.undo or _last(plan).step not in early
    ]
    return ordered(model, plans)


def _last(plan: FaultPlan) -> Fault:
    return plan.faults[-1]


async def bisected(plan: FaultPlan, fails: Callable[[FaultPlan], Awaitable[bool]]) -> FaultPlan:
    """Return a smallest part of a failing packed plan that still fails (Zeller's delta debugging, by halves)."""
    faults = list(plan.faults)
    kept = [fault for fault in faults if fault.step == END or (fault.kind == "before" and len(faults) > 1)]
    packed = [fault for fault in faults if fault not in kept]
    if kept and packed and await fails(FaultPlan(tuple(kept))):
        return FaultPlan(tuple(kept))
    size = len(packed) // 2
    while size:
        start = 0
        while start < len(packed) and len(packed) > 1:
            part = packed[:start] + packed[start + size :]
            if part and await fails(FaultPlan((*kept, *part))):
                packed = part
            else:
                start += size
        size //= 2
    return FaultPlan((*kept, *packed))
