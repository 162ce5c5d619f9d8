"""What is wrong is reported once, under the smallest plan, and of the step that is to blame."""

from __future__ import annotations

from typing import Any

from test_no_alarm import CHAIN, MODES, desk_saga, hold, let_go

from sagaz_core import Saga, World, explore


def shown(exploration: Any) -> list[tuple[str, str, str | None]]:
    return sorted((str(o.plan), f.verdict.value, f.step) for o in exploration.failures for f in o.findings)


def test_a_step_that_is_not_idempotent_is_named_once_and_none_before_it() -> None:
    def act(desk: Any, step: str) -> None:
        desk["held"][step] = desk["held"].get(step, 0) + (step == "b")

    saga, world, _ = desk_saga(CHAIN, act, let_go)
    assert shown(explore(saga, world=world)) == [("b@flaky-after", "NOT_IDEMPOTENT", "b")]


def test_a_step_that_refuses_a_second_delivery_is_named_once_and_none_before_it() -> None:
    def act(desk: Any, step: str) -> None:
        if step in desk["held"] and step == "b":
            raise ValueError("there is one")
        desk["held"][step] = 1

    saga, world, _ = desk_saga(CHAIN, act, let_go)
    assert shown(explore(saga, world=world)) == [("b@flaky-after", "NOT_IDEMPOTENT", "b")]


def test_packed_plans_that_show_what_a_part_of_them_shows_are_left_out() -> None:
    saga, world, _ = desk_saga(CHAIN, hold, lambda desk, step: None)
    plans = [plan for plan, _, _ in shown(explore(saga, world=world, mode="packed"))]
    assert "end@before" in plans
    assert not any("undo" in plan for plan in plans)


def needs_an_account(order: list[str]) -> tuple[Saga[Any], World]:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    async def deposit(ctx: Any) -> None:
        if "account" not in desk:
            raise LookupError("no account")
        desk["deposit"] = 1

    def undo(name: str) -> Any:
        return lambda ctx: desk.pop(name, None)

    saga: Saga[Any] = Saga("bank")
    for name in order:
        act = deposit if name == "deposit" else lambda ctx: desk.update(account=1)
        saga.add_step(name, act, undo(name), depends_on=[], retries=1, in_doubt="compensate")
    saga.add_step("mail", lambda ctx: None, depends_on=["account", "deposit"])
    return saga, world


def test_a_step_that_fails_in_another_order_is_told_what_it_may_depend_on() -> None:
    saga, world = needs_an_account(["account", "deposit"])
    (outcome,) = explore(saga, world=world).failures
    (finding,) = outcome.findings
    assert (finding.verdict.value, finding.step) == ("OUT_OF_ORDER", "deposit")
    assert finding.sentence == (
        "'deposit' fails when it comes before 'account', and nothing says which comes first: LookupError: no account"
    )
    assert finding.advice == "declare depends_on='account' at step 'deposit'"
    assert not outcome.plan


@MODES
def test_a_saga_that_fails_in_the_engine_s_own_order_is_not_said_to_fail_in_another(mode: str) -> None:
    saga, world = needs_an_account(["deposit", "account"])
    saga.add_step("fails", lambda ctx: 1 / 0, depends_on=[])
    assert "OUT_OF_ORDER" not in {verdict for _, verdict, _ in shown(explore(saga, world=world, mode=mode))}
