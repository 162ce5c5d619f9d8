"""A step that reads a context key which another one writes, with nothing that orders them: one cause, told once."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_sagas import chains, dag, linear, sync, typed, with_pivot

from sagaz_core import FaultPlan, Saga, World, explore
from sagaz_core.events import Event, StepStarted, StepSucceeded
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.mutation.facts import survey
from sagaz_core.mutation.operators import mutants
from sagaz_core.prove.orders import other_orders
from sagaz_core.prove.trial import Subject, reference_reading, run_trial
from sagaz_core.virtual_time import run

EVERY_MODE = pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
READS = {
    "get": lambda ctx: ctx.get("price", 1),
    "item": lambda ctx: ctx["price"],
}


def order(read: Any, *, slow: bool = False, retries: int = 0, charge_first: bool = False) -> tuple[Saga[Any], World]:
    """An order of which the charge needs the quote's price, and does not say so."""
    desk: dict[str, Any] = {"quotes": [], "charges": {}}
    world = World()
    world.fake(desk, "desk")

    async def quote(ctx: Any) -> dict[str, int]:
        if slow:
            await asyncio.sleep(1)
        if "q" not in desk["quotes"]:
            desk["quotes"].append("q")
        return {"price": 5}

    async def unquote(ctx: Any) -> None:
        desk["quotes"][:] = []

    async def charge(ctx: Any) -> None:
        desk["charges"]["c"] = read(ctx)

    async def refund(ctx: Any) -> None:
        desk["charges"].pop("c", None)

    steps = {"quote": (quote, unquote), "charge": (charge, refund)}
    saga: Saga[Any] = Saga("order")
    for name in reversed(steps) if charge_first else steps:
        saga.add_step(name, *steps[name], depends_on=[], in_doubt="compensate", retries=retries)
    return saga.add_step("ship", lambda ctx: None, depends_on=["quote", "charge"]), world


def shown(exploration: Any) -> list[tuple[str, str, str | None, str]]:
    return [(str(o.plan), f.verdict.value, f.step, f.advice) for o in exploration.failures for f in o.findings]


ONE_CAUSE = [("", "OUT_OF_ORDER", "charge", "declare depends_on='quote' at step 'charge'")]


@EVERY_MODE
@pytest.mark.parametrize("charge_first", [False, True])
@pytest.mark.parametrize(("slow", "retries"), [(False, 0), (False, 1), (True, 1)])
@pytest.mark.parametrize("read", READS)
def test_it_is_the_only_thing_that_is_reported(
    read: str, slow: bool, retries: int, charge_first: bool, mode: str
) -> None:
    saga, world = order(READS[read], slow=slow, retries=retries, charge_first=charge_first)
    assert shown(explore(saga, world=world, mode=mode)) == ONE_CAUSE


@pytest.mark.parametrize("charge_first", [False, True])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    "plan",
    ["quote@flaky", "quote@flaky-after", "quote@repeat", "quote@crash", "quote@after", "charge@flaky"],
)
def test_no_benign_fault_is_blamed_for_it_in_a_run_of_one_plan(
    plan: str, read: str, slow: bool, charge_first: bool
) -> None:
    saga, world = order(READS[read], slow=slow, retries=1, charge_first=charge_first)
    subject = Subject(lambda: saga, world=world)
    reference = run(reference_reading(subject))
    outcome = run(run_trial(subject, FaultPlan.parse(plan), reference=reference))
    assert {(f.verdict.value, f.step) for f in outcome.findings} == {("OUT_OF_ORDER", "charge")}


@EVERY_MODE
def test_beside_it_a_step_is_found_that_is_not_idempotent_and_one_that_is_not_undone(mode: str) -> None:
    saga, world = order(READS["get"])
    rows: list[int] = []
    world.fake(rows, "rows")
    saga.add_step("mail", lambda ctx: rows.append(1), lambda ctx: rows.clear(), depends_on=["ship"])
    found = {(verdict, step) for _, verdict, step, _ in shown(explore(saga, world=world, mode=mode, depth=1))}
    assert found == {("OUT_OF_ORDER", "charge"), ("NOT_IDEMPOTENT", "mail"), ("ORPHAN", "mail")}


@EVERY_MODE
@pytest.mark.parametrize(
    "reference",
    [functools.partial(linear, 3), dag, functools.partial(chains, 2, 2), with_pivot, sync, typed],
    ids=["linear", "dag", "chains", "with_pivot", "sync", "typed"],
)
def test_of_a_mutant_that_lost_an_edge_that_edge_is_all_that_is_reported(reference: Any, mode: str) -> None:
    make, context, world = reference()
    lost = [m for m in mutants(make(), run(survey(make, context, world))) if m.operator == "lose-edge"]
    for mutant in lost:
        exploration = explore(
            lambda mutant=mutant: mutant.apply(make()),
            context,
            world=world,
            mode=mode,
            depth=1 if mode == "tree" else 2,
        )
        advice = f"declare depends_on={mutant.detail!r} at step {mutant.step!r}"
        assert shown(exploration) == [("", "OUT_OF_ORDER", mutant.step, advice)] or (
            exploration.failures == () and mutant.step == "s4"  # its forward recovery makes up for it
        )


@EVERY_MODE
def test_a_dependency_that_orders_several_is_asked_for_once_and_several_in_one_sentence(mode: str) -> None:
    saga: Saga[Any] = Saga("several")
    saga.add_step("a", lambda ctx: {"a": 1}, depends_on=[])
    saga.add_step("b", lambda ctx: {"b": ctx["a"]}, depends_on=["a"])
    saga.add_step("c", lambda ctx: {"c": 1}, depends_on=[])
    saga.add_step("d", lambda ctx: {"d": ctx.get("a", 0) + ctx.get("b", 0) + ctx.get("c", 0)}, depends_on=[])
    saga.add_step("e", lambda ctx: ctx["d"] + ctx.get("b", 0) and None, depends_on=["d"])
    world = World()
    world.fake({}, "desk")
    (outcome,) = explore(saga, world=world, mode=mode).failures
    (finding,) = outcome.findings
    assert finding.sentence == (
        "'d' reads 'b', which 'b' writes, and 'c', which 'c' writes, and nothing says which comes first"
    )
    assert finding.advice == "declare depends_on=['b', 'c'] at step 'd'"


@EVERY_MODE
def test_what_a_retry_makes_come_too_late_is_no_lack_of_idempotence(mode: str) -> None:
    """What the other step needs is in the world here, and not in the context."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    async def deposit(ctx: Any) -> None:
        if "account" not in desk:
            raise LookupError("no account")
        desk["deposit"] = 1

    saga: Saga[Any] = Saga("bank")
    saga.add_step("account", lambda ctx: desk.update(account=1), lambda ctx: desk.pop("account", None), retries=1)
    saga.add_step("deposit", deposit, lambda ctx: desk.pop("deposit", None), depends_on=[])
    saga.add_step("mail", lambda ctx: None, depends_on=["account", "deposit"])
    found = {(verdict, step, advice) for _, verdict, step, advice in shown(explore(saga, world=world, mode=mode))}
    wanted = ("OUT_OF_ORDER", "deposit", "declare depends_on='account' at step 'deposit'")
    assert {one for one in found if one[0] != "ORPHAN"} == {wanted}


def test_a_run_in_an_order_of_its_own_is_shown_to_its_end() -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("bank")
    saga.add_step("open", lambda ctx: desk.update(open=1), lambda ctx: desk.pop("open", None))
    saga.add_step("account", lambda ctx: desk.update(account=1), lambda ctx: desk.pop("account", None))
    saga.add_step("deposit", lambda ctx: {"sum": desk["account"]}, depends_on=["open"])
    (outcome,) = explore(saga, world=world, depth=1, kinds="before").failures
    assert [finding.verdict.value for finding in outcome.findings] == ["OUT_OF_ORDER"]
    assert (outcome.compensated, outcome.world_changes) == (["open"], ())


def shop(lost: str, needed: str, *, raises: bool) -> tuple[Saga[Any], World]:
    """Three chains of two; one step needs in the world what a step of another chain did, and does not say so."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    def act(name: str, ctx: Any) -> None:
        if name == lost:
            desk[name] = desk[needed] if raises else desk.get(needed)
        else:
            desk[name] = 1

    saga: Saga[Any] = Saga("shop")
    for chain in "abc":
        for number in range(2):
            name = f"{chain}{number}"
            undo = functools.partial(lambda name, ctx: desk.pop(name, None), name)
            before = [f"{chain}0"] if number else []
            saga.add_step(name, functools.partial(act, name), undo, depends_on=before, in_doubt="compensate")
    return saga, world


@EVERY_MODE
@pytest.mark.parametrize(("lost", "needed"), [("c0", "a0"), ("c1", "a0"), ("b1", "c0"), ("c1", "a1"), ("b1", "a1")])
def test_a_step_that_needs_in_the_world_what_comes_first_by_luck_is_found(lost: str, needed: str, mode: str) -> None:
    saga, world = shop(lost, needed, raises=True)
    (failure,) = [one for one in shown(explore(saga, world=world, mode=mode, kinds="before")) if not one[0]]
    assert failure[:3] == ("", "OUT_OF_ORDER", lost)
    assert failure[3] == f"declare depends_on={needed!r} at step {lost!r}"


@EVERY_MODE
def test_a_world_that_hangs_on_the_order_of_the_steps_is_told(mode: str) -> None:
    saga, world = shop("b1", "c0", raises=False)
    exploration = explore(saga, world=world, mode=mode, kinds="before")
    assert [note for note in exploration.notes if note.startswith("steps in another order leave another world")]
    assert exploration.failures == ()


def test_no_other_order_is_run_of_a_chain_and_one_of_steps_that_are_all_free() -> None:
    def executions(depends_on: list[str] | None) -> int:
        saga: Saga[Any] = Saga("free")
        for number in range(4):
            saga.add_step(f"s{number}", lambda ctx: None, depends_on=depends_on)
        return explore(saga, mode="packed", kinds="before", depth=0).executions

    assert (executions(None), executions([])) == (4, 8)


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize("timeout", [None, 5])
def test_steps_that_wait_for_each_other_may_run_side_by_side_only(timeout: float | None, mode: str) -> None:
    box: dict[str, asyncio.Event] = {}

    async def consume(ctx: Any) -> None:
        await box.setdefault("given", asyncio.Event()).wait()
        box.clear()

    async def produce(ctx: Any) -> None:
        box.setdefault("given", asyncio.Event()).set()

    world = World()
    world.fake({}, "desk")
    saga: Saga[Any] = Saga("queue")
    saga.add_step("consume", consume, depends_on=[], timeout=timeout)
    saga.add_step("produce", produce, depends_on=[])
    exploration = explore(saga, world=world, mode=mode, depth=0)
    assert (exploration.failures, exploration.notes, exploration.fails_alone) == ((), (), "")


def test_a_step_that_waited_in_vain_in_another_order_is_tried_in_the_saga_s_own() -> None:
    def make() -> Saga[Any]:
        given = asyncio.Event()

        async def produce(ctx: Any) -> None:
            given.set()

        saga: Saga[Any] = Saga("queue")
        saga.add_step("consume", lambda ctx: given.wait(), depends_on=[])
        saga.add_step("produce", produce, depends_on=[])
        return saga

    exploration = explore(make, mode="packed", kinds="before")
    (outcome,) = exploration.failures
    assert (str(outcome.plan), outcome.verdict.value) == ("produce@before", "ENDLESS")


@given(st.data())
def test_with_the_orders_that_are_run_each_two_steps_come_both_ways(data: st.DataObject) -> None:
    names = [f"s{number}" for number in range(data.draw(st.integers(1, 7)))]
    steps = []
    for place, name in enumerate(names):
        depends_on = data.draw(st.sets(st.sampled_from(names[:place]))) if place else ()
        steps.append(StepModel(name, depends_on=tuple(sorted(depends_on))))
    model = SagaModel("random", tuple(steps))
    orders = list(other_orders(model, one_after_the_other(model.order)))
    assert len(orders) <= len(names)
    for order in orders:
        assert all(model.ancestors[name] <= {*order[:place]} for place, name in enumerate(order))
        assert {*order} == {*names}
    came = {pair for order in (model.order, *orders) for pair in itertools.combinations(order, 2)}
    assert came == {pair for pair in itertools.permutations(names, 2) if pair[0] not in model.descendants[pair[1]]}


def one_after_the_other(order: Iterable[str]) -> list[Event]:
    at = datetime(2025, 1, 1, tzinfo=UTC)
    return [event for name in order for event in (StepStarted(0, at, name, 1), StepSucceeded(0, at, name, 1))]
