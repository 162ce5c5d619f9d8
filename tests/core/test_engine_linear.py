"""Steps one after the other: retries, timeouts, rejections, doubts."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import threading
import warnings
from typing import Any

import pytest

from sagaz_core import Backoff, Saga, SagaStatus, StepRejected
from sagaz_core.clock import utc_now
from sagaz_core.engine import calls
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import StepTimeoutError, UsageError
from sagaz_core.events import StepFailed, StepRetryScheduled, StepStarted
from sagaz_core.virtual_time import run


def kinds(result: Any) -> list[str]:
    return [type(event).__name__ for event in result.events]


async def fails(ctx: Any) -> None:
    raise OSError("down")


def test_a_saga_that_completes_says_what_it_did() -> None:
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: {"a": 1}).add_step("b", lambda ctx: ctx["a"])
    result = run(saga.run({"x": 1}, saga_id="ORDER-1"))
    assert (result.saga_id, result.saga_name, result.status) == ("ORDER-1", "s", SagaStatus.COMPLETED)
    assert result.completed_steps == ("a", "b")
    assert result.results == {"a": {"a": 1}, "b": 1}
    assert result.context == {"x": 1, "a": 1}
    assert (result.error, result.exception, result.failed_step, result.stuck) == (None, None, None, ())
    assert kinds(result) == ["SagaStarted", *["StepStarted", "StepSucceeded"] * 2, "SagaCompleted"]
    result.raise_for_status()


def test_a_failure_is_in_the_result_and_all_is_undone_in_reverse() -> None:
    undone: list[str] = []
    saga: Saga[Any] = Saga("s")
    for name in "abc":
        saga.add_step(name, lambda ctx: None, lambda ctx, *, name=name: undone.append(name))
    result = run(saga.add_step("d", fails).run())
    assert undone == ["c", "b", "a"]
    assert result.status is SagaStatus.ROLLED_BACK
    assert result.compensated_steps == ("c", "b", "a")
    assert (result.failed_step, str(result.error)) == ("d", "OSError: down")
    assert isinstance(result.exception, OSError)
    with pytest.raises(Exception, match="ended rolled_back at 'd': OSError: down"):
        result.raise_for_status()


@pytest.mark.parametrize("saga_id", ["", "x" * 256, 5, "\udc80"])
def test_a_wrong_id_is_refused_before_anything_runs(saga_id: Any) -> None:
    with pytest.raises(UsageError, match="is not a saga id"):
        run(Saga("s").add_step("a", fails).run(saga_id=saga_id))


def test_attempts_follow_each_other_after_exactly_their_delays() -> None:
    times: list[float] = []

    async def act(ctx: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)
        raise OSError

    saga: Saga[Any] = Saga("s").add_step("a", act, retries=4, backoff=Backoff(first=0.5, factor=4, cap=5))
    result = run(saga.run())
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [1.5, 3.0, 6.0, 6.0]
    failures = [event for event in result.events if isinstance(event, StepFailed)]
    assert [(event.attempt, event.final, event.in_doubt) for event in failures] == [
        *((n, False, True) for n in (1, 2, 3, 4)),
        (5, True, True),
    ]
    delays = [event.delay for event in result.events if isinstance(event, StepRetryScheduled)]
    assert delays == [0.5, 2.0, 5.0, 5.0]


def test_a_step_that_succeeds_on_a_retry_leaves_no_failure() -> None:
    left = [1, 1]

    async def act(ctx: Any) -> Any:
        if left:
            left.pop()
            raise OSError
        return {"ok": 1}

    result = run(Saga("s").add_step("a", act, retries=2).run())
    assert (result.status, result.error, result.failed_step, result.exception) == ("completed", None, None, None)


class DeclinedError(Exception): ...


@pytest.mark.parametrize(("error", "rejects"), [(StepRejected("no"), ()), (DeclinedError("no"), (DeclinedError,))])
def test_a_rejection_is_not_retried_and_leaves_no_doubt(error: Exception, rejects: Any) -> None:
    calls: list[int] = []
    undone: list[int] = []

    async def act(ctx: Any) -> None:
        calls.append(1)
        raise error

    saga: Saga[Any] = Saga("s").add_step(
        "a", act, lambda ctx: undone.append(1), retries=5, in_doubt="compensate", rejects=rejects
    )
    result = run(saga.run())
    assert (len(calls), undone, result.status) == (1, [], "rolled_back")


def test_an_attempt_in_doubt_is_not_forgotten_when_the_next_is_refused() -> None:
    undone: list[Any] = []
    errors = [OSError("lost"), StepRejected("no")]

    async def act(ctx: Any) -> None:
        raise errors.pop(0)

    saga: Saga[Any] = Saga("s").add_step(
        "a", act, lambda ctx, result: undone.append(result), retries=5, in_doubt="compensate"
    )
    assert run(saga.run()).compensated_steps == ("a",)
    assert undone == [None]


@pytest.mark.parametrize(("in_doubt", "expected"), [("compensate", ("b", "a")), ("ignore", ("a",))])
def test_a_step_in_doubt_is_undone_where_it_says_so(in_doubt: Any, expected: Any) -> None:
    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: None, lambda ctx: None)
        .add_step("b", fails, lambda ctx: None, in_doubt=in_doubt)
    )
    assert run(saga.run()).compensated_steps == expected


def test_an_action_that_takes_too_long_is_stopped() -> None:
    stopped: list[float] = []

    async def act(ctx: Any) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            stopped.append(asyncio.get_running_loop().time())
            raise

    async def main() -> Any:
        began = asyncio.get_running_loop().time()
        result = await Saga("s").add_step("a", act, timeout=2.5, retries=1, backoff=Backoff(1)).run()
        return result, [at - began for at in stopped]

    result, at = run(main())
    assert at == [2.5, 6.0]
    assert isinstance(result.exception, StepTimeoutError)
    assert str(result.error) == "StepTimeoutError: not done within 2.5 s"


def test_a_timeout_of_the_users_own_is_his() -> None:
    async def act(ctx: Any) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)

    result = run(Saga("s").add_step("a", act, timeout=3).run())
    assert type(result.exception) is TimeoutError


def test_a_sync_action_without_a_timeout_runs_where_the_saga_does() -> None:
    where: list[int] = []
    run(Saga("s").add_step("a", lambda ctx: where.append(threading.get_ident())).run())
    assert where == [threading.get_ident()]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_a_sync_action_with_a_timeout_runs_in_a_thread_with_the_callers_variables() -> None:
    seen: list[Any] = []

    def act(ctx: Any) -> Any:
        seen.append((threading.get_ident() == main_thread, variable.get()))
        return {"a": 1}

    main_thread = threading.get_ident()

    async def main() -> Any:
        variable.set("mine")
        return await Saga("s").add_step("a", act, timeout=5).run()

    assert run(main()).context == {"a": 1}
    assert seen == [(False, "mine")]


def test_a_thread_that_outlives_its_timeout_is_waited_for_before_anything_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    go = threading.Event()
    wait_for_stray = calls._wait_for_stray

    async def waited(thread: asyncio.Future[Any], patience: float) -> None:
        assert patience == 0.05  # as long again
        go.set()
        await wait_for_stray(thread, 20)  # however busy the machine is

    def act(ctx: Any) -> None:
        go.wait(20)
        log.append("effect")

    async def main() -> Any:
        saga: Saga[Any] = Saga("s").add_step(
            "a", act, lambda ctx: log.append("undo"), timeout=0.05, in_doubt="compensate"
        )
        return await saga.run()

    monkeypatch.setattr(calls, "_wait_for_stray", waited)
    result = asyncio.run(main())
    assert log == ["effect", "undo"]
    assert isinstance(result.exception, StepTimeoutError)


def test_what_a_thread_returned_to_be_awaited_is_dropped_without_a_word_when_the_saga_was_cancelled() -> None:
    log: list[str] = []
    go = threading.Event()

    async def effect() -> None:
        log.append("effect")

    def act(ctx: Any) -> Any:
        go.wait(20)
        return effect()

    async def main() -> None:
        saga: Saga[Any] = Saga("s").add_step("a", act, lambda ctx: log.append("undo"), timeout=5, in_doubt="compensate")
        running = asyncio.ensure_future(saga.run())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        gc.collect()  # a coroutine that was never awaited would be told of here

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [str(warning.message) for warning in told] == []
    assert log == ["undo"]


def test_a_thread_that_never_ends_is_given_up_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    async def main() -> Any:
        result = await Saga("s").add_step("a", lambda ctx: go.wait(20), timeout=0.02).run()
        go.set()
        return result

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(main()).status == "rolled_back"
    assert "still running" in caplog.text


def test_a_cancellation_made_up_by_user_code_is_an_ordinary_failure() -> None:
    async def act(ctx: Any) -> None:
        raise asyncio.CancelledError("made up")

    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, lambda ctx: None).add_step("b", act, retries=1)
    result = run(saga.run())
    assert (result.status, result.compensated_steps, result.failed_step) == ("rolled_back", ("a",), "b")
    assert sum(isinstance(event, StepStarted) for event in result.events) == 3


def test_a_task_that_was_cancelled_before_can_still_run_a_saga() -> None:
    async def act(ctx: Any) -> None:
        raise asyncio.CancelledError("made up")

    async def main() -> Any:
        async def cleaning_up() -> Any:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                return await Saga("s").add_step("a", act).add_step("b", print).run()

        task = asyncio.ensure_future(cleaning_up())
        await asyncio.sleep(1)
        task.cancel()
        return await task

    result = run(main())
    assert (result.status, result.failed_step) == ("rolled_back", "a")


def test_an_error_that_cannot_be_printed_does_not_hide_the_failure() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError

    async def act(ctx: Any) -> None:
        raise BrokenError

    result = run(Saga("s").add_step("a", act).run())
    assert result.error is not None
    assert result.error.message == "(its message could not be made)"


def test_an_observer_that_fails_does_not_stop_the_saga(caplog: pytest.LogCaptureFixture) -> None:
    def observe(event: Any) -> None:
        raise ValueError("a broken monitor")

    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None, lambda ctx: None).add_step("b", fails)
    result = run(run_saga(saga, options=RunOptions(observers=(observe,))))
    assert result.compensated_steps == ("a",)
    assert "a broken monitor" in caplog.text


def test_times_never_go_back_within_a_saga() -> None:
    now = utc_now()
    clock = iter([now, now.replace(year=2000), now.replace(year=2000), now.replace(year=9999), now])
    result = run(run_saga(Saga("s").add_step("a", print), options=RunOptions(clock=lambda: next(clock, now))))
    times = [event.at for event in result.events]
    assert times == sorted(times)
    assert [event.seq for event in result.events] == [0, 1, 2, 3]
