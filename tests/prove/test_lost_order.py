"""A step that reads a context key which another one writes, with nothing that orders them: one cause, told once."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from reference_sagas import chains, dag, linear, sync, typed, with_pivot

from sagaz_core import FaultPlan, Saga, World, explore
from sagaz_core.mutation.facts import survey
from sagaz_core.mutation.operators import mutants
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
