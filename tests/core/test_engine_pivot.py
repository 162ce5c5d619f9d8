"""Past its pivot a saga only goes forward."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dags import Watched, World

from sagaz_core import Backoff, Recovery, ReplayConfig, Saga, SagaConfig, SagaStatus
from sagaz_core.events import StepFailed, StepSucceeded
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import run


def booking(last: Any, recovery: Any = None, config: SagaConfig | None = None, **more: Any) -> tuple[Saga[Any], World]:
    world = World()
    saga: Saga[Any] = (
        Saga("s", config=config)
        .add_step("a", lambda ctx: None, lambda ctx: world.note("undo", "a"))
        .add_step("pay", lambda ctx: world.note("do", "pay"), lambda ctx: world.note("undo", "pay"), pivot=True)
        .add_step("ship", last, lambda ctx: world.note("undo", "ship"), recovery=recovery, **more)
        .add_step("mail", lambda ctx: world.note("do", "mail"))
    )
    return saga, world


def failing(times: int) -> Any:
    left = [OSError("down")] * times

    async def act(ctx: Any) -> Any:
        if left:
            raise left.pop()
        return {"shipped": True}

    return act


def test_without_a_handler_the_rest_is_retried_forward() -> None:
    saga, world = booking(failing(3))
    result = run(saga.run())
    assert (result.status, result.exception, result.error) == (SagaStatus.COMPLETED, None, None)
    assert world.log == [("do", "pay"), ("do", "mail")]
    assert not any(isinstance(event, StepFailed) and event.final for event in result.events)


def test_a_saga_that_cannot_go_forward_is_stuck_and_nothing_is_undone() -> None:
    saga, world = booking(failing(9), config=SagaConfig(forward_retries=2))
    result = run(saga.run())
    assert (result.status, result.stuck) == (SagaStatus.FAILED, ("ship",))
    assert world.log == [("do", "pay")]
    assert str(result.error) == "OSError: down"


@pytest.mark.parametrize(
    ("decision", "how", "context"),
    [(Recovery.SKIP, "skipped", {}), ({"shipped": "later"}, "recovered", {"shipped": "later"}), ({}, "recovered", {})],
)
def test_a_handler_may_stand_in_for_the_step(decision: Any, how: str, context: Any) -> None:
    saga, world = booking(failing(9), lambda ctx: decision)
    result = run(saga.run())
    assert (result.status, result.context) == (SagaStatus.COMPLETED, context)
    assert [e.how for e in result.events if isinstance(e, StepSucceeded) and e.step == "ship"] == [how]
    assert world.marked("do") == ["pay", "mail"]


def test_a_handler_that_says_retry_is_asked_again() -> None:
    asked: list[Any] = []

    async def handler(ctx: Any, error: Exception) -> Any:
        asked.append(str(error))
        return Recovery.RETRY

    saga, _ = booking(failing(3), handler)
    assert run(saga.run()).success
    assert asked == ["down"] * 3


@pytest.mark.parametrize("answer", [Recovery.GIVE_UP, None, "retry", ValueError("the handler fails")])
def test_a_handler_that_gives_up_leaves_the_saga_stuck(answer: Any) -> None:
    def handler(ctx: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    saga, world = booking(failing(9), handler)
    result = run(saga.run())
    assert (result.status, result.stuck) == (SagaStatus.FAILED, ("ship",))
    assert world.marked("undo") == []


def test_before_the_pivot_all_is_undone() -> None:
    world = World()
    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: None, lambda ctx: world.note("undo", "a"))
        .add_step("b", failing(9))
        .add_step("pay", print, pivot=True)
    )
    result = run(saga.run())
    assert (result.status, result.failed_step) == (SagaStatus.ROLLED_BACK, "b")
    assert [e.step for e in result.events if isinstance(e, StepFailed) and e.final] == ["b"]
    assert world.log == [("undo", "a")]


def beside(pivot_fails: bool, sibling: Any = "wait") -> tuple[Any, World]:
    """`other` fails while `pay`, the pivot, still runs."""
    world = World()
    left = [OSError("other")] * 2

    async def pay(ctx: Any) -> None:
        await asyncio.sleep(5)
        if pivot_fails:
            raise ValueError("pay")
        world.note("do", "pay")

    def undo_pay(ctx: Any) -> None:
        world.note("undo", "pay")

    async def other(ctx: Any) -> None:
        await asyncio.sleep(1)
        if left:
            raise left.pop()
        world.note("do", "other")

    saga: Saga[Any] = (
        Saga("s", config=SagaConfig(on_sibling_failure=sibling))
        .add_step("a", lambda ctx: None, lambda ctx: world.note("undo", "a"))
        .add_step("pay", pay, undo_pay, depends_on=["a"], pivot=True, in_doubt="compensate")
        .add_step("other", other, depends_on=["a"])
        .add_step("last", lambda ctx: world.note("do", "last"), depends_on=["pay", "other"])
    )
    return run(saga.run()), world


def test_a_sibling_that_fails_beside_the_pivot_is_retried_once_that_is_done() -> None:
    result, world = beside(pivot_fails=False)
    assert result.success
    assert world.log == [("do", "pay"), ("do", "other"), ("do", "last")]


def test_when_the_pivot_fails_too_all_is_undone() -> None:
    result, world = beside(pivot_fails=True)
    assert (result.status, result.context) == (SagaStatus.ROLLED_BACK, {})
    assert world.log == [("undo", "pay"), ("undo", "a")]
    assert any(isinstance(e, StepFailed) and e.final for e in result.events)


def test_a_pivot_that_is_cancelled_for_its_sibling_is_in_doubt() -> None:
    result, world = beside(pivot_fails=False, sibling="cancel")
    assert result.status is SagaStatus.ROLLED_BACK
    assert world.log == [("undo", "pay"), ("undo", "a")]


def slow_ship(world: World) -> Any:
    async def ship(ctx: Any) -> None:
        await asyncio.sleep(5)
        world.note("do", "ship")

    return ship


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("recovering", [False, True])
def test_cancelled_past_its_pivot_a_saga_stays_where_it_is_and_is_resumed(stored: bool, recovering: bool) -> None:
    world = World()
    saga, log = booking(failing(1) if recovering else slow_ship(world), backoff=Backoff(10))
    store = InMemorySnapshotStorage()
    if stored:
        saga.snapshot_storage, saga.replay_config = store, ReplayConfig()
    watched = Watched(saga)

    async def main() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await watched.run()
        assert watched.journal is not None
        state = watched.journal.state
        assert state.status is SagaStatus.EXECUTING
        assert log.marked("undo") == []
        return await (saga.resume("S") if stored else watched.resume(state))

    result = run(main())
    assert result.success
    assert log.log == [("do", "pay"), ("do", "mail")]


def test_cancelled_while_its_handler_is_asked_a_saga_stays_where_it_is() -> None:
    async def handler(ctx: Any) -> Any:
        await asyncio.sleep(100)

    saga, world = booking(failing(9), handler)
    watched = Watched(saga)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await watched.run()

    run(main())
    assert watched.journal is not None
    assert watched.journal.state.status is SagaStatus.EXECUTING
    assert world.marked("undo") == []
