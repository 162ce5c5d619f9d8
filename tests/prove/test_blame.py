"""What is wrong is reported once, under the smallest plan, and of the step that is to blame."""

from __future__ import annotations

from typing import Any

from test_no_alarm import CHAIN, MODES, desk_saga, hold, let_go

from sagaz_core import Saga, StepRejected, World, explore


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


def test_the_compensation_that_does_not_take_back_all_is_named() -> None:
    def undo(desk: Any, step: str) -> None:
        if step != "b":
            desk["held"].pop(step, None)

    for mode in ("auto", "packed"):
        saga, world, _ = desk_saga(CHAIN, hold, undo)
        outcome = next(o for o in explore(saga, world=world, mode=mode).failures if str(o.plan) == "c@before")
        (finding,) = outcome.findings
        assert (finding.verdict.value, finding.step, finding.culprits) == ("LIE", None, ("b",))
        assert finding.advice == "let the compensation of b take back all that its action did, and nothing else"
        assert "b     yes   yes     LIE" in outcome.explain()
        assert "c           yes\n" in outcome.explain()


def test_of_a_place_that_many_steps_change_the_one_is_named_that_does_not_put_it_back() -> None:
    def act(desk: Any, step: str) -> None:
        if step not in desk["held"]:
            desk["held"][step] = 1
            desk["rows"].append(step)

    def undo(desk: Any, step: str) -> None:
        if desk["held"].pop(step, None) and step != "a":
            desk["rows"].remove(step)

    saga, world, _ = desk_saga(CHAIN, act, undo)
    outcome = next(o for o in explore(saga, world=world).failures if str(o.plan) == "b@before")
    assert outcome.findings[0].culprits == ("a",)


@MODES
def test_what_another_step_leaves_beside_a_stuck_one_is_found(mode: str) -> None:
    def undo(desk: Any, step: str) -> None:
        if step != "b" or "c" not in desk["held"]:  # forgets while the step behind it is still there
            desk["held"].pop(step, None)

    saga, world, _ = desk_saga(CHAIN, hold, undo)
    saga.add_step("d", lambda ctx: None)
    exploration = explore(saga, world=world, mode=mode)
    (outcome,) = (o for o in exploration.failures if "undo-fail" in str(o.plan))
    (finding,) = outcome.findings
    assert (finding.verdict.value, finding.step, finding.culprits) == ("LIE", None, ("b",))
    assert finding.sentence == (
        "the saga says that only c could not be undone, but more of the world is not as it was "
        "(desk.held.b: (nothing) -> 1)"
    )


@MODES
def test_a_step_without_compensation_that_changes_nothing_is_not_blamed(mode: str) -> None:
    saga, world, desk = desk_saga(CHAIN, hold, lambda desk, step: desk["held"].pop(step if step != "b" else None, None))
    saga.add_step("look", lambda ctx: {"seen": len(desk["held"])})
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.mode == ("merged" if mode == "auto" else "packed")
    assert {f.step for o in exploration.failures for f in o.findings} <= {None, "b"}


def test_a_step_that_has_an_effect_and_then_refuses_is_named() -> None:
    def act(desk: Any, step: str) -> None:
        desk["held"][step] = 1
        if step == "c":
            raise StepRejected("no")

    saga, world, _ = desk_saga(CHAIN, act, let_go)
    (outcome,) = explore(saga, world=world).failures
    assert outcome.findings[0].advice.startswith(
        "let step 'c' refuse before it has an effect: it is not undone; or else"
    )
