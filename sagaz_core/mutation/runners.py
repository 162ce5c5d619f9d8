"""How a mutant is tried until it is found: under one plan after the other, or by the explorer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.kinds import KINDS, parse_kinds
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan, single_fault_plans
from sagaz_core.model import END
from sagaz_core.prove.explorer import aexplore
from sagaz_core.prove.trial import Subject, describe, run_trial
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.world import World

Make = Callable[[], Any]
Values = Mapping[str, Any]
Plans = Callable[["SagaModel"], Iterable[FaultPlan]]
End = tuple[SagaStatus, Mapping[str, Any], Mapping[str, Any]]

_ORDER = ("after", "repeat", "crash", "flaky-after", "before", "late", "hang", "cancel", "flaky", "crash-recorded")


@dataclass(frozen=True, slots=True)
class Tried:
    """How a saga was tried: `found` is what was wrong first (`""` if nothing was), `plan` where, after how many `runs`.

    `ends` has how each plan ended, to compare with those of the saga that is as it should be.
    """

    found: str = ""
    plan: str = ""
    runs: int = 0
    ends: Mapping[str, End] = field(default_factory=dict)


Runner = Callable[[Make, Values, "World | None"], Awaitable[Tried]]
"""Tries every failure of a saga until one is not sound."""


def planned(plans: Plans) -> Runner:
    """Return the runner that runs the saga without faults, and then under one plan after the other from the start."""

    async def tried(make: Make, context: Values, world: World | None) -> Tried:
        _, model = await describe(Subject(make, context))
        reference = None
        ends: dict[str, End] = {}
        saved = world.save() if world is not None and world.restorable else None
        for runs, plan in enumerate((NO_FAULTS, *plans(model)), 1):
            outcome = await run_trial(Subject(make, context, world=world), plan, reference=reference)
            if world is not None and saved is not None:
                world.restore(saved)
            if not plan:
                if outcome.status is not SagaStatus.COMPLETED:
                    return Tried(f"without any fault the saga ended {outcome.status.value}", "none", runs)
                reference = outcome.world_after if saved is not None else None
            if outcome.findings:
                return Tried(outcome.findings[0].sentence, str(plan) or "none", runs)
            ends[str(plan)] = _end(outcome)
        return Tried(runs=len(ends), ends=ends)

    return tried


def explored(**options: Any) -> Runner:
    """Return the runner that explores the saga; the options are those of `explore`. Its runs are the plans covered."""

    async def tried(make: Make, context: Values, world: World | None) -> Tried:
        exploration = await aexplore(make, context, world=world, **options)
        for outcome in exploration.failures[:1]:
            return Tried(outcome.findings[0].sentence, str(outcome.plan) or "none", exploration.plans)
        ends = {str(outcome.plan): _end(outcome) for outcome in exploration.outcomes}
        return Tried(runs=exploration.plans, ends=ends)

    return tried


def _end(outcome: Outcome) -> End:
    return outcome.status, outcome.world_after or {}, outcome.context


def one_fault(kinds: str | Iterable[str] = "all") -> Plans:
    """Return the plans of one fault, in the order in which they find most: the last steps first."""
    wanted = parse_kinds(kinds)
    order = [kind for kind in (*_ORDER, *(name for name in KINDS if name not in _ORDER)) if kind in wanted]

    def plans(model: SagaModel) -> list[FaultPlan]:
        places = {name: place for place, name in enumerate((*model.order, END))}

        def rank(plan: FaultPlan) -> tuple[int, int]:
            fault = plan.faults[-1]
            return order.index(fault.kind), -places[fault.step]

        return sorted(single_fault_plans(model, wanted), key=rank)

    return plans


def packed(model: SagaModel) -> list[FaultPlan]:
    """Return at most 2N + 10 plans: each benign kind at every step at once, and each step failed after and before."""
    benign = []
    for kind in KINDS.values():
        if not kind.fatal:
            faults = [plan.faults for plan in single_fault_plans(model, [kind.name])]
            at_once = tuple(fault for (fault,) in (some for some in faults if len(some) == 1))
            if kind.name.startswith("crash"):
                at_once = _in_a_chain(at_once, model)
            if at_once:
                benign.append(FaultPlan(at_once))
    last, *fatal = [FaultPlan((Fault(step, name),)) for name in ("after", "before") for step in reversed(model.order)]
    return [last, *benign, *fatal]  # what undoes everything finds most


def one_fault_and_packed(kinds: str | Iterable[str] = "all") -> Plans:
    """Return the plans of one fault and then, with all kinds, the packed ones."""
    single = one_fault(kinds)
    everything = set(parse_kinds(kinds)) == set(KINDS)
    return lambda model: list(dict.fromkeys([*single(model), *(packed(model) if everything else ())]))


def _in_a_chain(faults: Iterable[Fault], model: SagaModel) -> tuple[Fault, ...]:
    """Those of steps that never run side by side: a process in which two of them run dies only once."""
    chosen: list[Fault] = []
    for fault in faults:
        if all(other.step in model.ancestors[fault.step] for other in chosen):
            chosen.append(fault)
    return tuple(chosen)
