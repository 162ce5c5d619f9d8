"""What is wrong is reported once, under the smallest plan, and of the step that is to blame."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from test_no_alarm import CHAIN, MODES, desk_saga, hold, let_go

from sagaz_core import FaultPlan, Saga, SagaConfig, StepRejected, World, explore
from sagaz_core.faults.kinds import KINDS
from sagaz_core.prove.explorer import explore_subject
from sagaz_core.prove.search import Search
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.prove.verdict import Verdict
from sagaz_core.virtual_time import run


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


def test_what_a_compensation_leaves_running_is_shown_in_a_rollback_and_once() -> None:
    left: list[Any] = []

    async def undo(ctx: Any) -> None:
        left.append(asyncio.ensure_future(asyncio.sleep(9)))

    saga, world, _ = desk_saga(CHAIN, hold, let_go)
    saga.add_step("mail", lambda ctx: None, undo, retries=1)
    (outcome,) = explore(saga, world=world).failures
    assert [(str(outcome.plan), f.verdict.value, f.step) for f in outcome.findings] == [
        ("end@before", "ORPHAN", "mail")
    ]


def test_a_branch_that_no_single_run_takes_is_shown_with_the_command_of_the_search() -> None:
    saga, world = needs_an_account(["account", "deposit"])
    subject = Subject(lambda: saga, world=world, reproduce="explore --plan={plan}")
    (outcome,) = run(explore_subject(subject, Search(tuple(KINDS), again="explore"))).failures
    assert outcome.reproduce == "explore"


@pytest.mark.parametrize("first", [None, False])
def test_a_flag_that_a_saga_keeps_on_itself_is_named_also_when_the_instance_has_run_before(first: Any) -> None:
    saga, world, _ = desk_saga(CHAIN, hold, let_go)
    if first is not None:
        vars(saga)["reserved"] = first
    saga.add_step("flag", lambda ctx: vars(saga).update(reserved=True))
    exploration = explore(saga, world=world)
    assert exploration.mode == "packed"
    assert "self.reserved" in exploration.reason


def test_what_a_saga_makes_once_for_all_its_runs_may_stay_on_it() -> None:
    saga, world, _ = desk_saga(CHAIN, hold, let_go)
    saga.add_step("client", lambda ctx: vars(saga).setdefault("client", object()) and None)
    assert explore(saga, world=world).mode == "merged"


def test_behind_a_pivot_no_compensation_is_counted() -> None:
    saga, world, _ = desk_saga(CHAIN, hold, let_go)
    saga.add_step("paid", lambda ctx: None, pivot=True)
    saga.add_step("ship", lambda ctx: None, lambda ctx: None)
    exploration = explore(saga, world=world)
    assert exploration.complete
    assert exploration.coverage[0] == exploration.coverage[1]
    assert not any(step == "ship" and kind.startswith("undo") for step, kind in exploration.applicable)


class Swallows:
    """Stands for a guard around every call that thinks it knows better."""

    async def intercept(self, call: Any, proceed: Any) -> Any:
        try:
            return await proceed()
        except Exception:
            return None


def test_an_error_that_an_interceptor_of_the_saga_swallows_is_found() -> None:
    saga: Saga[Any] = Saga("guarded", interceptors=[Swallows()])
    saga.add_step("pay", lambda ctx: None, lambda ctx: None, in_doubt="compensate")
    exploration = explore(saga, kinds="before,undo-fail")
    assert shown(exploration) == [("end@before", "LIE", "end"), ("pay@before", "LIE", "pay")]
    assert exploration.not_run == {"pay@undo-fail": "no run got to where pay@undo-fail strikes"}


def test_a_compensation_that_never_works_does_not_make_plans_vacuous() -> None:
    saga: Saga[Any] = Saga("stuck")
    saga.add_step("pay", lambda ctx: None, lambda ctx: 1 / 0, compensation_retries=1)
    exploration = explore(saga, kinds="before,undo-repeat")
    assert shown(exploration) == [("end@before", "STUCK", "pay")]
    assert exploration.not_run["pay@undo-repeat"] == "no run got to where pay@undo-repeat strikes"


def test_two_runs_that_differ_are_noted_also_where_nothing_can_be_forked() -> None:
    numbers = iter(range(100))
    saga: Saga[Any] = Saga("counts")
    saga.add_step("draw", lambda ctx: {"number": next(numbers)})
    assert explore(saga, kinds="before").notes == (
        "two runs without faults differ, first at: 'do draw +number=0', then 'do draw +number=1'",
    )


class Unstored:
    """What no store can keep."""


@MODES
def test_a_context_that_cannot_be_stored_is_named_and_what_can_be_tried_is(mode: str) -> None:
    saga, world, _ = desk_saga(CHAIN, hold, lambda desk, step: None)
    exploration = explore(saga, {"odd": Unstored()}, world=world, mode=mode)
    assert exploration.mode == "packed"
    if mode == "auto":
        assert exploration.reason.startswith("the context cannot be copied: context['odd']: a value of type ")
    assert "c@before" in {str(outcome.plan) for outcome in exploration.failures}
    assert exploration.not_run["a@crash"].startswith("state['initial']['odd']: a value of type ")


@MODES
def test_a_typed_context_whose_model_makes_what_cannot_be_stored_is_named_too(mode: str) -> None:
    class Line(BaseModel):  # in no module
        sku: str

    class Order(BaseModel):
        lines: list[Line] = []

    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Order] = Saga[Order]("typed")
    saga.add_step("a", lambda ctx: desk.update(a=1), lambda ctx: None, in_doubt="compensate")
    exploration = explore(saga, {"lines": [{"sku": "W1"}]}, world=world, mode=mode, kinds="before,crash")
    assert exploration.mode == "packed"
    if mode == "auto":
        assert exploration.reason.startswith(
            "the context cannot be copied: context['lines'][0]: a value of the pydantic "
        )
    assert shown(exploration) == [("end@before", "LIE", None)]
    assert exploration.not_run["a@crash"].startswith("state['initial']['lines'][0]: a value of the pydantic ")


class OneMore:
    """A field that is one more than what it is set to."""

    numbers: ClassVar[dict[int, int]] = {}

    def __get__(self, owner: Any, kind: Any) -> int:
        return 0 if owner is None else self.numbers[id(owner)]

    def __set__(self, owner: Any, value: int) -> None:
        self.numbers[id(owner)] = value + 1


@dataclass
class Counted:
    """What is another value each time it is made of its fields."""

    number: OneMore = OneMore()  # type: ignore[assignment]


@MODES
def test_what_a_store_gives_back_as_another_value_is_found(mode: str) -> None:
    saga, world, _ = desk_saga(CHAIN, hold, let_go)
    saga.add_step("count", lambda ctx: {"counted": Counted(5)})
    found = {
        (finding.verdict.value, finding.step)
        for o in explore(saga, world=world, mode=mode).failures
        for finding in o.findings
    }
    assert found == {("CONTEXT_LEAK", "count")}
    assert (
        run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("a@repeat"))).verdict.value == "CONTEXT_LEAK"
    )


@pytest.mark.parametrize("steps", [CHAIN, {"a": [], "b": [], "c": ["a", "b"]}], ids=["chain", "dag"])
def test_the_last_step_is_undone_after_it_was_done_too_and_not_only_in_doubt(steps: dict[str, list[str]]) -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("forgets")

    def undo(ctx: Any, result: Any) -> None:
        if not (result and result["step"] == "c"):  # forgets what it is told was done
            desk.pop("c", None)

    for name, before in steps.items():
        back = undo if name == "c" else lambda ctx, *, step=name: desk.pop(step, None)
        saga.add_step(
            name,
            lambda ctx, *, step=name: {"step": desk.setdefault(step, step)} if step == "c" else desk.update({step: 1}),
            back,
            depends_on=before,
            in_doubt="compensate",
        )
    exploration = explore(saga, world=world)
    assert shown(exploration) == [("end@before", "LIE", None)]
    assert exploration.plans == exploration.possible


@MODES
def test_a_step_that_fails_by_itself_with_half_of_its_effect_is_an_orphan_and_named(mode: str) -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    def half(ctx: Any) -> None:
        desk["half"] = 1
        raise ConnectionError("lost")

    saga: Saga[Any] = Saga("half")
    saga.add_step("a", lambda ctx: desk.update(a=1), lambda ctx: desk.pop("a", None), in_doubt="compensate")
    saga.add_step("b", half, lambda ctx: desk.pop("half", None))
    exploration = explore(saga, world=world, mode=mode)
    assert shown(exploration) == [("", "ORPHAN", "b")]
    (finding,) = exploration.failures[0].findings
    assert finding.sentence.endswith(" is not as it was (desk.half: (nothing) -> 1): 'b' had changed it when it failed")
    assert finding.advice.startswith("declare in_doubt=\"compensate\" at step 'b'")


def test_a_task_that_is_in_none_of_the_users_code_is_named_without_a_place() -> None:
    left: list[Any] = []

    async def act(ctx: Any) -> None:
        left.append(asyncio.ensure_future(asyncio.sleep(9)))

    saga: Saga[Any] = Saga("leaves")
    saga.add_step("a", act)
    (finding,) = explore(saga, kinds="before", world=World()).failures[0].findings
    assert finding.sentence == "the action of 'a' left a task running (sleep), whose effects may come at any time"


@pytest.mark.parametrize("mode", ["auto", "packed"])
def test_an_action_that_had_its_effect_several_times_is_blamed_and_not_its_compensation(mode: str) -> None:
    def act(desk: Any, step: str) -> None:
        desk["held"][step] = desk["held"].get(step, 0) + 1

    def undo(desk: Any, step: str) -> None:
        if desk["held"].get(step, 0) > 1:
            desk["held"][step] -= 1
        else:
            desk["held"].pop(step, None)

    saga, world, _ = desk_saga(CHAIN, act, undo)
    lies = [o for o in explore(saga, world=world, mode=mode).failures if o.verdict is Verdict.LIE]
    assert str(lies[0].plan) in ("a@after", "c@after")
    (finding,) = lies[0].findings
    assert finding.culprits == (lies[0].plan.faults[0].step,)
    assert finding.advice == (
        f"let the action of {finding.culprits[0]} notice that its effect is there already (an idempotency key): it had "
        f"it more than once, and not all of that was taken back"
    )


def chained(policy: Any) -> tuple[Saga[Any], World]:
    """A chain whose first step cannot be undone while the second one is there."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    def empty(ctx: Any) -> None:
        if "parcel" in desk:
            raise LookupError("there is a parcel in it")
        desk.pop("van", None)

    saga: Saga[Any] = Saga("van", config=SagaConfig(on_compensation_failure=policy))
    saga.add_step("van", lambda ctx: desk.update(van=1), empty, in_doubt="compensate")
    parcel = lambda ctx: desk.update(parcel=1), lambda ctx: desk.pop("parcel", None)
    saga.add_step("parcel", *parcel, in_doubt="compensate")
    return saga, world


def test_a_compensation_that_needs_a_later_one_is_told_of_the_policy_which_mends_it() -> None:
    saga, world = chained("continue_on_error")
    stuck = [finding for o in explore(saga, world=world).failures for finding in o.findings if finding.step == "van"]
    (advice,) = {finding.advice for finding in stuck}
    assert advice == (
        "let it be undone also while parcel, which could not be undone, is still there; or declare "
        'on_compensation_failure="skip_dependents", which leaves it as it is then'
    )
    saga, world = chained("skip_dependents")
    assert {f.step for o in explore(saga, world=world, kinds="before,undo-fail").failures for f in o.findings} == set()


def test_a_compensation_that_fails_when_it_has_undone_all_is_told_so() -> None:
    def undo(desk: Any, step: str) -> None:
        desk["held"].pop(step, None)
        if step == "b":
            raise LookupError("no receipt")

    saga, world, _ = desk_saga(CHAIN, hold, undo)
    outcome = run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("c@before")))
    (finding,) = outcome.findings
    assert (finding.verdict.value, finding.step, finding.sentence, finding.advice) == (
        "STUCK",
        "b",
        "the compensation of 'b' did not succeed, although the world shows nothing more of its effect",
        "let the compensation succeed when all is undone: what it does after that fails",
    )
