"""How a mutant is tried until it is found: under one plan after the other, or by the explorer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.kinds import KINDS, parse_kinds
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.explorer import aexplore
from sagaz_core.prove.packed import finding_most_first, packed_plans, single_plans
from sagaz_core.prove.schedules import OLDEST_FIRST, has_choice
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
    """Return the runner that runs the saga under one plan after the other from the start, and once without faults.

    What a benign fault does is compared with that one run, which therefore comes before all but a first fatal plan. A
    plan that is undone in another order too is so at the end: what only that order shows is rare.
    """

    async def tried(make: Make, context: Values, world: World | None) -> Tried:
        adapter, model = await describe(Subject(make, context))
        reference = None
        ends: dict[str, End] = {}
        saved = world.save() if world is not None and world.restorable else None
        runs, subject = 0, Subject(make, context, world=world, closely=False)
        again: list[tuple[Subject, FaultPlan]] = []
        vacuous: Tried | None = None
        for how, plan in chain(zip(repeat(subject), _with_clean_run(plans(model))), again):
            outcome = await run_trial(how, plan, reference=reference)
            runs += 1
            if world is not None and saved is not None:
                world.restore(saved)
            if not plan:
                if outcome.status is not SagaStatus.COMPLETED:
                    return Tried(f"without any fault the saga ended {outcome.status.value}", "none", runs)
                reference = outcome.world_after if saved is not None else None
            if vacuous is not None:
                return replace(vacuous, runs=runs)
            if outcome.findings:
                found = Tried(outcome.findings[0].sentence, str(plan) or "none", runs)
                if not outcome.evidence.missed or ends:
                    return found
                vacuous = found  # unless the saga fails without any fault, which says more
                continue
            ends[f"{plan}, {OLDEST_FIRST}" if how.oldest_first else str(plan)] = _end(outcome)
            if not adapter.one_order and not how.oldest_first and has_choice(outcome):
                again.append((replace(subject, oldest_first=True), plan))
        return Tried(runs=runs, ends=ends)

    return tried


def _with_clean_run(plans: Iterable[FaultPlan]) -> Iterator[FaultPlan]:
    first, *others = plans
    clean_first = not any(fault.described.fatal for fault in first)
    yield from (NO_FAULTS, first) if clean_first else (first, NO_FAULTS)
    yield from others


def explored(**options: Any) -> Runner:
    """Return the runner that explores the saga; the options are those of `explore`. Its runs are the plans covered."""

    async def tried(make: Make, context: Values, world: World | None) -> Tried:
        exploration = await aexplore(make, context, world=world, **options)
        for outcome in exploration.failures[:1]:
            return Tried(outcome.findings[0].sentence, str(outcome.plan) or "none", exploration.plans)
        if exploration.fails_alone:
            return Tried(exploration.fails_alone, "none", exploration.plans)
        ends = {str(outcome.plan): _end(outcome) for outcome in exploration.outcomes}
        return Tried(runs=exploration.plans, ends=ends)

    return tried


def _end(outcome: Outcome) -> End:
    return outcome.status, outcome.world_after or {}, outcome.context


def one_fault_and_packed(kinds: str | Iterable[str] = "all") -> Plans:
    """Return the plans of one fault and, with all kinds, the packed ones: those first that find most."""
    wanted = parse_kinds(kinds)
    everything = set(wanted) == set(KINDS)
    known: dict[SagaModel, list[FaultPlan]] = {}

    def plans(model: SagaModel) -> list[FaultPlan]:
        found = known.get(model)
        if found is None:
            packed = packed_plans(model, KINDS) if everything else []
            plans = [*packed, *single_plans(model, wanted)]
            found = known[model] = finding_most_first(plans, model)
        return found

    return plans
