"""Cancelling the task that runs a saga: all is undone, then `CancelledError` is raised again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dags import Watched, World

from sagaz_core import Backoff, Saga, SagaStatus
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import StoreUnavailableError
from sagaz_core.events import StepFailed
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import run


class SlowStore(InMemorySnapshotStorage):
    """Takes a second for each write, as a remote one does."""

    async def write(self, batch: Any) -> None:
        await asyncio.sleep(1)
        await super().write(batch)


def order(world: World, wide: bool = False) -> Saga[Any]:
    """Two steps of two seconds, then one that is flaky; each undone in three seconds."""

    def step(name: str, seconds: float) -> tuple[Any, Any]:
        async def act(ctx: Any) -> Any:
            await asyncio.sleep(seconds)
            world.note("do", name)
            return {name: 1}

        async def undo(ctx: Any) -> None:
            await asyncio.sleep(3)
            world.note("undo", name)

        return act, undo

    calls: list[int] = []

    async def flaky(ctx: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError
        world.note("do", "c")

    async def undo_c(ctx: Any) -> None:
        world.note("undo", "c")

    saga: Saga[Any] = Saga("s")
    saga.add_step("a", *step("a", 2), depends_on=[])
    saga.add_step("b", *step("b", 4), depends_on=[] if wide else ["a"])
    saga.add_step("c", flaky, undo_c, depends_on=["a", "b"], retries=1, backoff=Backoff(4))
    saga.add_step("d", step("d", 2)[0], depends_on=["c"])
    return saga


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("again", [None, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("at", [n * 0.5 for n in range(44)])
def test_cancelled_at_any_moment_it_is_all_undone(at: float, again: float | None, stored: bool, wide: bool) -> None:
    world = World()
    saga = order(world, wide)
    if stored:
        saga.snapshot_storage = SlowStore()
    watched = Watched(saga)

    async def main() -> bool:
        task = asyncio.ensure_future(watched.run({"x": 1}))
        await asyncio.sleep(at)
        was_cancelled = task.cancel()
        if again is not None:
            await asyncio.sleep(again)
            task.cancel()
        done, _ = await asyncio.wait([task])
        assert done
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if was_cancelled and at:
            with pytest.raises(asyncio.CancelledError):
                task.result()
        return was_cancelled

    was_cancelled = run(main())
    if watched.journal is None:
        return  # cancelled before it began
    state = watched.journal.state
    assert state.status.ended
    if state.status is SagaStatus.ROLLED_BACK:
        assert was_cancelled
        assert state.context == {"x": 1}
        undone = world.marked("undo")
        assert sorted(undone) == sorted(name for name in world.marked("do") if name != "d")
        assert [event for event in watched.journal.events if isinstance(event, StepFailed) and event.final]
        marks = [mark for mark, _ in world.log]
        assert "do" not in marks[marks.index("undo") :] if undone else True
    if stored:
        events = run(stored_events(saga.snapshot_storage))
        assert events == [type(event).__name__ for event in watched.journal.events]


async def stored_events(storage: Any) -> list[str]:
    return [event.kind async for event in storage.read_events("S")]


def test_a_timeout_around_a_saga_is_a_timeout_when_it_is_undone() -> None:
    world = World()

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await order(world).run()
        return asyncio.get_running_loop().time() - began

    assert run(main()) == 6
    assert world.log == [("do", "a"), ("undo", "a")]


def test_a_task_group_whose_other_task_fails_has_its_saga_undone() -> None:
    world = World()

    async def other() -> None:
        await asyncio.sleep(3)
        raise ValueError("other")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(order(world).run())
            group.create_task(other())

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    assert caught.group_contains(ValueError, match="other")
    assert world.log == [("do", "a"), ("undo", "a")]


def test_a_step_that_is_cancelled_is_in_doubt() -> None:
    undone: list[str] = []

    async def act(ctx: Any) -> None:
        await asyncio.sleep(10)

    saga: Saga[Any] = Saga("s").add_step("a", act, lambda ctx: undone.append("a"), in_doubt="compensate")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await saga.run()

    run(main())
    assert undone == ["a"]


def test_a_step_that_was_not_called_is_not_in_doubt() -> None:
    undone: list[str] = []
    saga: Saga[Any] = Saga("s", snapshot_storage=SlowStore()).add_step(
        "a", print, lambda ctx: undone.append("a"), in_doubt="compensate"
    )
    watched = Watched(saga)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await watched.run()

    run(main())
    assert undone == []
    assert watched.journal is not None
    assert watched.journal.state.status is SagaStatus.ROLLED_BACK


def test_cancelled_in_an_interceptor_behind_the_last_step_it_is_undone() -> None:
    class Waits:
        async def intercept(self, call: Any, proceed: Any) -> Any:
            if call.kind == "end":
                await asyncio.sleep(10)
            return await proceed()

    undone: list[str] = []
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, lambda ctx: undone.append("a"))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await run_saga(saga, options=RunOptions(interceptors=(Waits(),)))

    run(main())
    assert undone == ["a"]


def test_a_store_that_cancels_itself_does_not_cancel_the_saga() -> None:
    class Cancels(InMemorySnapshotStorage):
        async def write(self, batch: Any) -> None:
            raise asyncio.CancelledError

    saga: Saga[Any] = Saga("s", snapshot_storage=Cancels()).add_step("a", print)
    with pytest.raises(StoreUnavailableError, match="cancelled its own work"):
        run(saga.run())


def test_closing_the_loop_ends_a_rollback() -> None:
    async def for_ever(ctx: Any) -> None:
        await asyncio.sleep(1e9)

    async def fails(ctx: Any) -> None:
        raise OSError

    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, for_ever).add_step("b", fails)

    async def main() -> None:
        task = asyncio.ensure_future(saga.run())
        await asyncio.sleep(0.01)
        assert not task.done()

    asyncio.run(main())
