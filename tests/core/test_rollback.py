"""Undoing: how hard it tries, in what order, and what becomes of it when it fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dags import World

from sagaz_core import Saga, SagaConfig, SagaStatus
from sagaz_core.errors import StepTimeoutError
from sagaz_core.events import CompensationFailed, CompensationStarted, StepRetryScheduled
from sagaz_core.virtual_time import run


async def fails(ctx: Any) -> None:
    raise OSError("down")


def diamond(policy: Any, broken: dict[str, int], world: World) -> Saga[Any]:
    """`a`, then `b` and `c`, then `d`, then the failure; `broken` says how often a compensation fails."""
    left = dict(broken)

    def undo(name: str) -> Any:
        async def compensate(ctx: Any) -> str:
            world.note("try", name)
            if left.get(name, 0):
                left[name] -= 1
                raise OSError(name)
            world.note("undo", name)
            return name.upper()

        return compensate

    saga: Saga[Any] = Saga("s", config=SagaConfig(on_compensation_failure=policy))
    for name, needs in [("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"])]:
        saga.add_step(name, lambda ctx, name=name: {name: 1}, undo(name), depends_on=needs, compensation_retries=1)
    return saga.add_step("e", fails, depends_on=["d"])


@pytest.mark.parametrize(
    ("policy", "undone", "stuck"),
    [
        ("fail_fast", ["d"], ("c", "b", "a")),
        ("continue_on_error", ["d", "b", "a"], ("c",)),
        ("retry_then_continue", ["d", "b", "a"], ("c",)),
        ("skip_dependents", ["d", "b"], ("c", "a")),
    ],
)
def test_a_compensation_that_fails_for_good_leaves_the_saga_failed(policy: Any, undone: Any, stuck: Any) -> None:
    world = World()
    result = run(diamond(policy, {"c": 99}, world).run())
    assert world.marked("undo") == undone
    assert (result.status, result.stuck) == (SagaStatus.FAILED, stuck)
    assert (result.failed_step, str(result.error)) == ("e", "OSError: down")
    assert result.context["c"] == 1


def test_every_compensation_is_retried_and_the_rest_goes_on() -> None:
    world = World()
    result = run(diamond("continue_on_error", {"d": 1, "a": 1}, world).run())
    assert world.marked("try") == ["d", "d", "c", "b", "a", "a"]
    assert (result.status, result.stuck, result.context) == (SagaStatus.ROLLED_BACK, (), {})
    assert result.compensation_results == {"d": "D", "c": "C", "b": "B", "a": "A"}


def test_what_failed_is_tried_once_more_when_the_rest_is_undone() -> None:
    world = World()
    result = run(diamond("retry_then_continue", {"c": 3}, world).run())
    assert world.marked("undo") == ["d", "b", "a", "c"]
    assert (result.status, result.stuck) == (SagaStatus.ROLLED_BACK, ())


def test_delays_between_the_attempts_grow() -> None:
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, fails).add_step("b", fails)
    result = run(saga.run())
    assert result.stuck == ("a",)
    assert [e.delay for e in result.events if isinstance(e, StepRetryScheduled) and e.undo] == [0.1, 0.2]
    failures = [(e.attempt, e.final) for e in result.events if isinstance(e, CompensationFailed)]
    assert failures == [(1, False), (2, False), (3, True)]


def test_a_compensation_that_takes_too_long_is_stopped_and_tried_again() -> None:
    times: list[float] = []

    async def undo(ctx: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0 if len(times) > 1 else 100)

    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, undo, compensation_timeout=2).add_step("b", fails)
    result = run(saga.run())
    assert result.status is SagaStatus.ROLLED_BACK
    assert times[1] - times[0] == pytest.approx(2.1)
    (failure,) = [e for e in result.events if isinstance(e, CompensationFailed)]
    assert failure.error.type.endswith(StepTimeoutError.__name__)


def test_a_cancellation_made_up_by_a_compensation_is_a_failure_of_it() -> None:
    async def undo(ctx: Any) -> None:
        raise asyncio.CancelledError

    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, undo, compensation_retries=0).add_step("b", fails)
    assert run(saga.run()).stuck == ("a",)


def test_a_step_without_a_compensation_leaves_no_trace_in_the_context() -> None:
    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: {"a": 1, "x": 2})
        .add_step("b", lambda ctx: {"b": 1}, lambda ctx: None)
        .add_step("c", fails)
    )
    result = run(saga.run({"x": 1}))
    assert (result.status, result.context) == (SagaStatus.ROLLED_BACK, {"x": 1})
    assert result.completed_steps == ("a",)


def test_a_compensation_sees_the_context_as_its_step_left_it() -> None:
    seen: list[Any] = []
    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: {"k": "a"}, lambda ctx: seen.append(dict(ctx)))
        .add_step("b", lambda ctx: {"k": "b"}, lambda ctx: seen.append(dict(ctx)))
        .add_step("c", fails)
    )
    run(saga.run({"k": 0}))
    assert seen == [{"k": "b"}, {"k": "a"}]


def test_what_a_compensation_writes_is_seen_by_those_after_it() -> None:
    seen: list[Any] = []

    def undo_b(ctx: Any) -> None:
        ctx["note"] = "from b"

    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: None, lambda ctx: seen.append(ctx["note"]))
        .add_step("b", lambda ctx: None, undo_b)
        .add_step("c", fails)
    )
    run(saga.run())
    assert seen == ["from b"]


def test_compensations_run_one_at_a_time() -> None:
    running: list[int] = []

    async def undo(ctx: Any) -> None:
        running.append(1)
        assert len(running) == 1
        await asyncio.sleep(1)
        running.pop()

    saga: Saga[Any] = Saga("s")
    for name in "abcd":
        saga.add_step(name, lambda ctx: None, undo, depends_on=[])
    result = run(saga.add_step("e", fails, depends_on=list("abcd")).run())
    assert result.compensated_steps == ("d", "c", "b", "a")
    assert sum(isinstance(e, CompensationStarted) for e in result.events) == 4
