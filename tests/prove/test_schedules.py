"""Runs from the start undo in two orders what nothing orders: newest first, and oldest first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from reference_sagas import CORRECT, dag

from sagaz_core import Saga, World, explore
from sagaz_core.engine.rollback import oldest_first
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.prove.schedules import has_choice, in_both_orders
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run


def lost_edge() -> Saga[Any]:
    """`charge` needs what `reserve` returned, which is there by luck: it comes a moment later."""

    async def reserve(ctx: Any) -> dict[str, str]:
        return {"ticket": "t1"}

    async def charge(ctx: Any) -> None:
        await asyncio.sleep(1)

    async def refund(ctx: Any) -> None:
        assert ctx["ticket"] == "t1"

    async def nothing(ctx: Any) -> None: ...

    saga: Saga[Any] = Saga("lost-edge")
    saga.add_step("reserve", reserve, nothing, depends_on=[])
    return saga.add_step("charge", charge, refund, depends_on=[])


def test_packed_plans_find_a_lost_edge_of_a_dag() -> None:
    exploration = explore(lost_edge(), kinds="before,undo-flaky")
    assert (exploration.mode, exploration.plans) == ("packed", exploration.possible)
    first = exploration.failures[0]
    assert (first.verdict.value, first.findings[0].step) == ("STUCK", "charge")
    assert first.evidence.oldest_first
    assert first.compensated == ["reserve"]
    assert first.explain().startswith(f"saga 'lost-edge' under {first.plan} (undone oldest first) ended failed: STUCK")
    assert (
        "and newest first      it is sound: if one of them needs what another did, declare depends_on"
        in first.explain()
    )


@pytest.mark.parametrize("name", CORRECT)
def test_a_sound_saga_is_sound_in_both_orders(name: str) -> None:
    make, context, world = CORRECT[name]()
    exploration = explore(make, context, world=world, mode="packed")
    assert exploration.failures == ()
    assert bool(exploration.orders) is (name in ("dag", "chains"))
    assert ("more orders of rollback, oldest first" in exploration.summary()) is bool(exploration.orders)


def test_packed_plans_of_a_dag_stay_within_their_runs() -> None:
    make, context, world = dag()
    steps = len(make().definition().steps)
    kinds = (
        "after,before,repeat,flaky,flaky-after,crash,crash-recorded,undo-flaky,undo-flaky-after,undo-crash,undo-repeat"
    )
    exploration = explore(make, context, world=world, mode="packed", kinds=kinds)
    packed = [outcome for outcome in exploration.outcomes if len(outcome.plan.faults) > 1]
    assert len(packed) + exploration.orders <= 2 * (2 * steps + 11)


def test_a_budget_of_executions_holds_for_the_second_order_too() -> None:
    make, context, world = dag()
    spent = [explore(make, context, world=world, mode="packed", max_executions=100) for _ in range(2)]
    assert spent[0].not_run["*"] == spent[1].not_run["*"]
    assert (spent[0].plans, spent[0].orders, spent[0].complete) == (spent[1].plans, spent[1].orders, False)


def test_the_oldest_first_is_undone_as_far_as_the_saga_allows() -> None:
    steps = {"a": (), "b": (), "c": ("a",), "d": ("b", "c"), "e": ()}
    model = SagaModel("s", tuple(StepModel(name, needs, True) for name, needs in steps.items()))
    assert oldest_first(["e", "d", "c", "b", "a"], model) == ["d", "b", "c", "a", "e"]
    assert oldest_first(["e", "c", "a"], model) == ["c", "a", "e"]


def test_a_resumed_run_keeps_its_order() -> None:
    make, context, world = dag()
    plan = FaultPlan.parse("pack@before+charge@undo-crash")
    newest = run(run_trial(Subject(make, context, world=world), plan))
    make, context, world = dag()  # with a world of its own
    oldest = run(run_trial(Subject(make, context, world=world, oldest_first=True), plan))
    assert has_choice(newest)
    assert newest.compensated == ["pack", "charge", "reserve"]
    assert oldest.compensated == ["charge", "pack", "reserve"]


def test_a_chain_has_one_order() -> None:
    make, context, world = CORRECT["linear"]()
    outcome = run(run_trial(Subject(make, context, world=world), FaultPlan.parse("end@before")))
    assert not has_choice(outcome)


def test_a_world_is_the_same_before_both_orders() -> None:
    starts: list[dict[str, int]] = []
    desk: dict[str, int] = {"n": 0}
    world = World()
    world.fake(desk, "desk")

    async def up(ctx: Any) -> None:
        starts.append(dict(desk))
        desk["n"] += 1

    async def down(ctx: Any) -> None:
        desk["n"] -= 1

    saga: Saga[Any] = Saga("pair").add_step("a", up, down, depends_on=[]).add_step("b", up, down, depends_on=[])
    exploration = explore(saga, world=world, mode="packed", kinds="before")
    assert (exploration.failures, exploration.orders) == ((), 1)
    assert {start["n"] for start in starts} == {0, 1}


@pytest.mark.parametrize(("plan", "ends"), [("end@before", "ROLLED_BACK"), ("charge@before", "ROLLED_BACK")])
def test_one_plan_is_tried_in_both_orders_where_there_are_two(plan: str, ends: str) -> None:
    outcome = run(in_both_orders(Subject(lost_edge), FaultPlan.parse(plan)))
    if plan == "end@before":
        assert (outcome.verdict.value, outcome.under) == ("STUCK", " under end@before (undone oldest first)")
    else:  # one step is left to be undone
        assert (outcome.findings, outcome.under) == ((), " under charge@before")


def test_a_run_that_the_first_has_spoiled_is_not_blamed_on_the_order() -> None:
    hidden: list[int] = []

    async def once(ctx: Any) -> None:
        hidden.append(1)
        if len(hidden) > 1:
            raise ValueError("there is one already")

    async def nothing(ctx: Any) -> None: ...

    saga: Saga[Any] = (
        Saga("pair").add_step("a", once, nothing, depends_on=[]).add_step("b", nothing, nothing, depends_on=[])
    )
    outcome = run(in_both_orders(Subject(lambda: saga), FaultPlan.parse("end@before")))
    assert (outcome.findings, outcome.evidence.oldest_first, len(hidden)) == ((), False, 3)


def test_the_fakes_are_put_back_before_the_other_order() -> None:
    make, context, world = dag()
    outcome = run(in_both_orders(Subject(make, context, world=world), FaultPlan.parse("end@before")))
    assert has_choice(outcome)
    assert outcome.findings == ()
