"""Which pairs of a step and a kind of fault end badly by themselves: all, not one for each thing that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from reference_sagas import CORRECT, chains, dag, linear

from sagaz_core import Saga, World, explore
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.model import END, SagaModel
from sagaz_core.mutation.facts import survey
from sagaz_core.mutation.operators import mutants
from sagaz_core.prove.coverage import Coverage
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.packed import single_plans
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run

Pair = tuple[str, str]


async def judged_one_by_one(saga: Any, context: Any, world: World, model: SagaModel) -> set[Pair]:
    """Return the pairs whose plan, run from the start, is not sound although it is without that fault."""
    saved, subject = world.save(), Subject(lambda: saga, context, world=world)
    reference = None

    async def judged(plan: FaultPlan) -> Outcome:
        world.restore(saved)
        return await run_trial(subject, plan, reference=reference)

    clean = await judged(NO_FAULTS)
    reference = clean.world_after
    at_the_end = await judged(FaultPlan.parse("end@before"))
    found = set()
    for plan in single_plans(model, KINDS):
        outcome, fault = await judged(plan), plan.faults[-1]
        without = at_the_end if fault.described.undo else clean
        if outcome.findings and not without.findings and not outcome.evidence.missed and fault.step != END:
            found.add((fault.step, fault.kind))
    world.restore(saved)
    return found


def broken(reference: Any) -> list[tuple[Any, Any, World]]:
    make, context, world = reference()
    return [(m.apply(make()), context, world) for m in mutants(make(), run(survey(make, context, world)))]


@pytest.mark.parametrize(
    ("reference", "mode", "depth"),
    [
        (lambda: linear(2), "merged", 2),
        (lambda: linear(2), "tree", 2),
        (lambda: linear(2), "packed", 2),
        (dag, "merged", 1),
    ],
    ids=["linear", "not merged", "packed", "dag"],
)
def test_every_pair_that_ends_badly_when_it_is_run_by_itself_is_unsound(reference: Any, mode: str, depth: int) -> None:
    sagas = broken(reference)
    assert len(sagas) > 15
    for saga, context, world in sagas:
        exploration = explore(saga, context, world=world, mode=mode, depth=depth)
        pairs = run(judged_one_by_one(saga, context, world, exploration.model))
        tried = {pair for pair in pairs if depth > 1 or not pair[1].startswith("undo")}
        assert exploration.unsound >= tried
        if exploration.model.linear:
            assert {pair for pair in exploration.unsound if not pair[1].startswith("undo")} <= pairs


@pytest.mark.parametrize("name", CORRECT)
def test_no_pair_of_a_correct_saga_is_unsound(name: str) -> None:
    make, context, world = chains(2, 2) if name == "chains" else CORRECT[name]()
    assert explore(make, context, world=world).unsound == frozenset()


def test_one_thing_that_is_wrong_counts_against_each_pair_that_shows_it() -> None:
    mails: list[str] = []

    async def send(ctx: Any) -> None:
        mails.append("hello")

    async def pay(ctx: Any) -> None:
        return None

    world = World()
    world.fake(mails, "mails")
    exploration = explore(Saga("shop").add_step("send", send).add_step("pay", pay), {}, world=world)
    assert "pay@after" not in {str(outcome.plan) for outcome in exploration.failures}
    unsound = {("send", "after"), ("send", "cancel"), ("pay", "before"), ("pay", "after"), ("pay", "cancel")}
    assert unsound <= exploration.unsound
    coverage = Coverage()
    coverage.add_exploration(exploration, "test_a")
    for read in (coverage, Coverage.from_json(coverage.to_json())):
        (saga,) = read.sagas.values()
        assert saga.unsound == exploration.unsound
        assert not saga.proved() & unsound
