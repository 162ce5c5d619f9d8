"""Sound sagas of shapes that are easily taken for unsound ones."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from sagaz_core import FaultPlan, Saga, SagaConfig, StepRejected, World, explore
from sagaz_core.prove.trial import Subject, reference_reading, run_trial
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable

    Desk = dict[str, Any]
    Done = Callable[[Desk], None]

MODES = pytest.mark.parametrize("mode", ["auto", "packed"])


def desk_saga(
    steps: dict[str, list[str]],
    act: Callable[[Desk, str], None],
    undo: Callable[[Desk, str], None],
    *,
    seconds: float = 0,
    policy: Any = "continue_on_error",
) -> tuple[Saga[Any], World, Desk]:
    """A saga whose steps act on one fake; what was undone is refused when it comes late."""
    desk: Desk = {"held": {}, "rows": [], "closed": []}
    world = World()
    world.fake(desk, "desk", append_only=["closed"])
    saga: Saga[Any] = Saga("desk", config=SagaConfig(on_compensation_failure=policy))
    for name, before in steps.items():

        async def forward(ctx: Any, *, step: str = name) -> None:
            await asyncio.sleep(seconds)
            if step in desk["closed"]:
                raise StepRejected(f"{step} was undone")
            act(desk, step)

        async def back(ctx: Any, *, step: str = name) -> None:
            await asyncio.sleep(seconds)
            if step not in desk["closed"]:
                desk["closed"].append(step)
            undo(desk, step)

        saga.add_step(
            name,
            forward,
            back,
            depends_on=before,
            timeout=5,
            retries=1,
            in_doubt="compensate",
            compensation_timeout=5,
        )
    return saga, world, desk


def hold(desk: Desk, step: str) -> None:
    desk["held"].setdefault(step, 1)


def let_go(desk: Desk, step: str) -> None:
    desk["held"].pop(step, None)


CHAIN = {"a": [], "b": ["a"], "c": ["b"]}
DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@MODES
def test_steps_that_take_more_than_half_of_their_time_may_be_delivered_twice_and_late(mode: str) -> None:
    saga, world, _ = desk_saga(CHAIN, hold, let_go, seconds=3)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.failures == ()
    assert exploration.complete


@pytest.mark.parametrize("policy", ["fail_fast", "continue_on_error", "retry_then_continue", "skip_dependents"])
def test_what_is_in_doubt_beside_a_stuck_step_may_stay(policy: str) -> None:
    saga, world, _ = desk_saga(DIAMOND, hold, let_go, policy=policy)
    assert explore(saga, world=world).failures == ()


@MODES
def test_steps_side_by_side_may_leave_another_world_in_another_order(mode: str) -> None:
    def append(desk: Desk, step: str) -> None:
        if step not in desk["rows"]:
            desk["rows"].append(step)

    def remove(desk: Desk, step: str) -> None:
        if step in desk["rows"]:
            desk["rows"].remove(step)

    saga, world, _ = desk_saga(DIAMOND, append, remove)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.failures == ()
    if mode == "auto":
        (note,) = exploration.notes
        assert note == (
            "steps in another order leave another world (desk.rows: ['a', 'b', 'c', 'd'] -> ['a', 'c', 'b', 'd']): "
            "declare depends_on if they must not"
        )


@MODES
def test_but_what_a_retry_does_twice_is_found_in_any_order(mode: str) -> None:
    def append(desk: Desk, step: str) -> None:
        desk["rows"].append(step)

    def remove(desk: Desk, step: str) -> None:
        desk["rows"][:] = [row for row in desk["rows"] if row != step]

    saga, world, _ = desk_saga(DIAMOND, append, remove)
    found = {(f.verdict.value, f.step) for o in explore(saga, world=world, mode=mode).failures for f in o.findings}
    assert found == {("NOT_IDEMPOTENT", step) for step in DIAMOND}


@MODES
def test_an_id_that_is_another_one_in_each_run_is_no_harm_of_a_benign_fault(mode: str) -> None:
    numbers = count()

    def draw(desk: Desk, step: str) -> None:
        desk["held"].setdefault(step, next(numbers))

    saga, world, _ = desk_saga(CHAIN, draw, let_go)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.failures == ()
    if mode == "auto":
        assert exploration.reason.startswith("two runs without faults leave different worlds (desk.held.a: 0 -> 3;")


def test_beside_such_an_id_what_is_done_twice_is_found() -> None:
    numbers = count()

    def draw(desk: Desk, step: str) -> None:
        desk["held"].setdefault(step, next(numbers))
        desk["rows"].append(step)

    def remove(desk: Desk, step: str) -> None:
        desk["held"].pop(step, None)
        desk["rows"][:] = [row for row in desk["rows"] if row != step]

    saga, world, _ = desk_saga(CHAIN, draw, remove)
    found = {(f.verdict.value, f.step) for o in explore(saga, world=world).failures for f in o.findings}
    assert found == {("NOT_IDEMPOTENT", step) for step in CHAIN}


def test_the_fakes_are_left_as_the_run_left_them_when_it_was_compared_again() -> None:
    def append(desk: Desk, step: str) -> None:
        desk["rows"].append(step)

    saga, world, desk = desk_saga(CHAIN, append, lambda desk, step: None)
    subject = Subject(lambda: saga, world=world)
    reference = run(reference_reading(subject))
    outcome = run(run_trial(subject, FaultPlan.parse("b@repeat"), reference=reference))
    assert outcome.verdict.value == "NOT_IDEMPOTENT"
    assert desk["rows"] == ["a", "b", "b", "c"]


def test_a_plan_that_cannot_be_run_leaves_nothing_for_the_next_one() -> None:
    class Unstored:
        pass

    saga, world, desk = desk_saga(CHAIN, hold, let_go)
    saga.add_step("odd", lambda ctx: {"odd": Unstored()})
    exploration = explore(saga, world=world)
    assert exploration.mode == "packed"
    assert "odd@crash-recorded" in exploration.not_run
    assert exploration.failures == ()
    assert desk["held"] == {}


@MODES
def test_a_default_of_a_typed_context_that_is_of_another_type_is_no_leak(mode: str) -> None:
    class Order(BaseModel):
        total: float = 0

    saga: Saga[Order] = Saga[Order]("order")
    saga.add_step("price", lambda ctx: {"total": 5}, lambda ctx: None, in_doubt="compensate")
    world = World()
    world.fake({}, "desk")
    assert explore(saga, world=world, mode=mode).failures == ()
