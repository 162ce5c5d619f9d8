"""The virtual-time loop, frozen clocks that move with it, and the clock module."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import datetime as dt
import gc
import itertools
import math
import os
import queue
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import freezegun
import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core import clock
from sagaz_core.errors import DeadlockError, NaiveTimeError, NetworkBlockedError, RunningLoopError
from sagaz_core.network import no_network
from sagaz_core.virtual_time import (
    VirtualClockLoop,
    VirtualRunner,
    frozen_at,
    move_frozen_clocks,
    run,
    sleep,
)

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
YEAR = 365 * 86_400


def virtual_loop() -> VirtualClockLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    return loop


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


# Jumping


def test_a_years_sleep_is_one_jump():
    async def main():
        await asyncio.sleep(YEAR)
        return virtual_loop().time(), virtual_loop().jumps

    assert run(main()) == (YEAR, 1)


def test_nothing_jumps_when_nothing_sleeps():
    async def main():
        await asyncio.sleep(0)
        return virtual_loop().time(), virtual_loop().jumps

    assert run(main()) == (0.0, 0)


def test_the_wall_clock_of_the_loop_goes_on_from_its_start():
    async def main():
        await asyncio.sleep(86_400)
        return virtual_loop().now()

    assert run(main(), start=NOON) == NOON + timedelta(days=1)


def test_the_wall_clock_of_the_loop_is_in_utc_and_a_real_datetime():
    zone = dt.timezone(timedelta(hours=5))
    with VirtualRunner(start=NOON.astimezone(zone)) as runner:
        assert runner.loop.now() == NOON
        assert runner.loop.now().tzinfo is UTC
        with freezegun.freeze_time(NOON):
            runner.loop.restart()
        assert type(runner.loop.now()) is type(NOON)


def test_a_start_without_a_zone_is_refused_with_the_way_to_write_it():
    with pytest.raises(NaiveTimeError, match="tzinfo=UTC"):
        VirtualClockLoop(datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point


def test_time_can_go_on_past_the_last_date_that_there_is():
    async def main():
        await asyncio.sleep(1e15)
        return virtual_loop().now()

    with freezegun.freeze_time(NOON):
        assert run(main(), start=NOON) == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("moment", [0.0, 5e6, 1e9, 1e12, 2.0**60])
@pytest.mark.parametrize("nap", [1e-12, 1e-9, 1e-3, 1.0])
def test_each_nap_is_one_jump_that_moves_time_however_late_it_is(moment, nap):
    async def main():
        loop = virtual_loop()
        await asyncio.sleep(moment)
        jumps = loop.jumps
        for _ in range(10):
            before = loop.time()
            await asyncio.sleep(nap)
            assert loop.time() > before
        return loop.jumps - jumps

    assert run(main()) == 10


def test_polling_until_a_moment_ends_when_naps_are_shorter_than_the_spacing_of_floats():
    async def main():
        loop = virtual_loop()
        await asyncio.sleep(1e12)
        end = loop.time() + 0.01
        while loop.time() < end:  # noqa: ASYNC110 - that is the point
            await asyncio.sleep(1e-9)
        return loop.jumps

    assert run(main()) < 200


@given(delays=st.lists(st.floats(0, 1e13) | st.integers(0, 5), max_size=20))
def test_timers_fire_at_their_moment_in_order_and_those_of_one_moment_as_they_were_set(delays):
    fired = []

    async def main():
        loop = virtual_loop()
        for number, delay in enumerate(delays):
            loop.call_later(delay, lambda n=number: fired.append((loop.time(), n)))
        await asyncio.sleep(1e14)

    run(main())
    assert fired == sorted((delay, number) for number, delay in enumerate(delays))


def test_a_cancelled_timer_is_no_reason_to_jump():
    async def main():
        virtual_loop().call_later(10, lambda: None).cancel()
        await asyncio.sleep(20)
        return virtual_loop().jumps

    assert run(main()) == 1


def test_many_cancelled_timers_are_thrown_away():
    async def main():
        for _ in range(1_000):
            virtual_loop().call_later(YEAR, lambda: None).cancel()
        return len(virtual_loop()._timers)

    assert run(main()) <= 100


def test_a_timer_cancelled_after_it_fired_counts_for_nothing():
    async def main():
        handle = virtual_loop().call_later(1, lambda: None)
        await asyncio.sleep(2)
        handle.cancel()
        return virtual_loop()._timer_cancelled_count

    assert run(main()) == 0


def test_a_timer_at_infinity_never_fires():
    async def main():
        sleeper = asyncio.create_task(asyncio.sleep(math.inf))
        await asyncio.sleep(YEAR)
        assert not sleeper.done()
        assert virtual_loop().jumps == 1
        sleeper.cancel()

    run(main())


@pytest.mark.parametrize(("delay", "error"), [(None, TypeError), (math.nan, ValueError)])
def test_a_timer_without_a_moment_is_refused(delay, error):
    async def main():
        with pytest.raises(error):
            virtual_loop().call_later(delay, lambda: None)

    run(main())


# What asyncio does, on this loop


def test_timeouts_fire_at_their_time():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(never(), 7)
        assert await asyncio.wait_for(asyncio.sleep(1, "in time"), 2) == "in time"
        return virtual_loop().time()

    assert run(main()) == 13


def test_a_task_group_waits_for_all_and_cancels_all_on_an_error():
    seen = []

    async def child(name, delay):
        try:
            await asyncio.sleep(delay)
            if name == "bad":
                raise LookupError(name)
        finally:
            seen.append((name, virtual_loop().time()))

    async def main():
        async with asyncio.TaskGroup() as group:
            for name, delay in (("slow", 9), ("bad", 2), ("quick", 1)):
                group.create_task(child(name, delay))

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    assert caught.group_contains(LookupError)
    assert seen == [("quick", 1), ("bad", 2), ("slow", 2)]


def test_locks_queues_events_gather_and_shield_work():
    async def main():
        mailbox: asyncio.Queue[int] = asyncio.Queue(1)
        event, lock = asyncio.Event(), asyncio.Lock()

        async def put():
            for number in range(3):
                await asyncio.sleep(1)
                await mailbox.put(number)
            event.set()

        async def take():
            async with lock:
                return [await mailbox.get() for _ in range(3)]

        shielded = asyncio.shield(asyncio.create_task(asyncio.sleep(10, "kept")))
        _, taken, _ = await asyncio.gather(put(), take(), event.wait())
        return taken, virtual_loop().time(), await shielded, virtual_loop().time()

    assert run(main()) == ([0, 1, 2], 3, "kept", 10)


def test_context_variables_are_those_of_the_caller_and_do_not_leak_back():
    var = contextvars.ContextVar("var", default="none")
    var.set("caller")

    async def main():
        seen = [var.get()]
        var.set("inside")
        virtual_loop().call_later(1, lambda: seen.append(var.get()))
        await asyncio.sleep(2)
        seen.append(await asyncio.to_thread(var.get))
        return seen

    assert run(main()) == ["caller", "inside", "inside"]
    assert var.get() == "caller"


def test_an_error_in_a_callback_goes_to_the_exception_handler():
    reported = []

    async def main():
        virtual_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        virtual_loop().call_later(1, lambda: [].pop())
        await asyncio.sleep(2)

    run(main())
    assert [type(error) for error in reported] == [IndexError]


def test_the_error_of_a_coroutine_is_the_error_of_the_run():
    async def main():
        await asyncio.sleep(1)
        raise LookupError("it")

    with pytest.raises(LookupError, match="it"):
        run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes_and_the_tasks_clean_up(error):
    cleaned = []

    async def sleeper():
        try:
            await asyncio.sleep(YEAR)
        finally:
            cleaned.append("sleeper")

    async def main():
        asyncio.create_task(sleeper())  # noqa: RUF006 - left behind on purpose
        await asyncio.sleep(1)
        raise error

    with pytest.raises(error):
        run(main())
    assert cleaned == ["sleeper"]


def test_tasks_that_are_left_are_cancelled_and_can_clean_up():
    events = []

    async def sleeper():
        try:
            await asyncio.sleep(YEAR)
        finally:
            await asyncio.sleep(5)
            events.append(virtual_loop().time())

    async def main():
        asyncio.create_task(sleeper())  # noqa: RUF006 - left behind on purpose
        await asyncio.sleep(1)

    run(main())
    assert events == [6]


def test_the_error_of_a_task_that_is_left_is_reported():
    reported = []

    async def sleeper():
        try:
            await asyncio.sleep(YEAR)
        finally:
            raise LookupError("while cleaning up")

    async def main():
        virtual_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        asyncio.create_task(sleeper())  # noqa: RUF006 - left behind on purpose
        await asyncio.sleep(1)

    run(main())
    assert [str(context["exception"]) for context in reported] == ["while cleaning up"]


def test_asynchronous_generators_are_closed_at_the_end():
    closed, kept = [], []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(1)
            closed.append(virtual_loop().time())

    async def main():
        kept.append(numbers())
        await anext(kept[0])

    run(main())
    assert closed == [1]


@pytest.mark.parametrize("rest", [0, 5])
def test_an_asynchronous_generator_that_is_dropped_is_closed(rest):
    closed = []

    async def numbers():
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.append(True)

    async def main():
        async for number in numbers():
            if number == 3:
                break
        gc.collect()
        if rest:
            await asyncio.sleep(rest)

    run(main())
    assert closed == [True]


def test_where_only_time_goes_by_the_loop_does_not_turn():
    async def main():
        loop, turned = virtual_loop(), []
        await sleep(YEAR)
        loop.call_soon(turned.append, "callback")
        await sleep(1)  # something else is ready
        assert turned == ["callback"]
        return loop.time(), loop.jumps, loop.now() - loop._start

    assert run(main(), start=NOON) == (YEAR + 1, 2, timedelta(seconds=YEAR + 1))


@pytest.mark.parametrize("seconds", [0, -1, 2, 3])
def test_a_sleep_ends_where_it_would_have_in_asyncio(seconds):
    async def order(sleeping):
        seen = []
        virtual_loop().call_later(2, seen.append, "timer")
        await sleeping(seconds)
        seen.append("slept")
        await asyncio.sleep(5)
        return seen, virtual_loop().time()

    assert run(order(sleep)) == run(order(asyncio.sleep))


def test_a_cancelled_timer_does_not_make_the_loop_turn():
    async def main():
        virtual_loop().call_later(1, print).cancel()
        sleeping = sleep(2)
        with pytest.raises(StopIteration):
            sleeping.send(None)  # it is over without having waited
        return virtual_loop().time()

    assert run(main()) == 2


def test_a_sleep_is_cancelled_when_its_task_is():
    async def main():
        task = asyncio.current_task()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleep(1)
        return virtual_loop().time()

    assert run(main()) == 0


def test_a_sleep_without_end_of_turns_is_given_up():
    async def main():
        while True:
            await sleep(1)

    with pytest.raises(DeadlockError, match="gave up after 100 turns"):
        run(main(), max_turns=100)


def test_a_sleep_waits_for_a_thread():
    async def main():
        job = asyncio.create_task(asyncio.to_thread(threading.get_ident))
        await asyncio.sleep(0)
        await sleep(10)
        return job.done()

    assert run(main())


def test_a_task_can_be_begun_at_once():
    async def main():
        seen = []

        async def work():
            seen.append(asyncio.current_task().get_name())
            await asyncio.sleep(1)
            seen.append("later")

        me = asyncio.current_task()
        task = virtual_loop().begin_task(work(), "quick")
        assert (seen, asyncio.current_task(), task.done()) == (["quick"], me, False)
        await task
        return seen

    assert run(main()) == ["quick", "later"]


def test_a_task_begun_at_once_keeps_its_error_to_itself():
    class Gone(BaseException):
        pass

    async def main():
        me = asyncio.current_task()

        async def dies():
            raise Gone

        task = virtual_loop().begin_task(dies(), "dies")
        assert asyncio.current_task() is me
        assert isinstance(task.exception(), Gone)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_run_at_once():
    async def main():
        virtual_loop().set_task_factory(asyncio.eager_task_factory)
        seen = []

        async def child():
            seen.append("started")
            await asyncio.sleep(3)
            return virtual_loop().time()

        task = asyncio.create_task(child())
        assert seen == ["started"]
        return await task

    assert run(main()) == 3


def test_debug_mode_works_and_measures_slow_callbacks_in_real_time(caplog):
    async def main():
        virtual_loop().slow_callback_duration = 0.0
        await asyncio.sleep(YEAR)
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            virtual_loop().call_at(1, main)
        return virtual_loop().get_debug()

    assert run(main(), debug=True)
    assert any("Executing" in record.message for record in caplog.records)


def test_the_standard_runner_can_use_the_loop():
    async def main():
        await asyncio.sleep(YEAR)
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(main()) == "sagaz-virtual-time"


def test_a_stopped_loop_can_be_run_again():
    loop = VirtualClockLoop()
    loop.call_later(5, loop.stop)
    loop.run_forever()
    assert loop.time() == 5
    assert loop.run_until_complete(asyncio.sleep(1, "again")) == "again"
    loop.close()
    loop.close()
    assert loop.is_closed()


def test_a_run_inside_a_running_loop_is_refused():
    async def inner():
        raise AssertionError("never run")

    async def main():
        with pytest.raises(RunningLoopError, match="await the coroutine there"):
            run(inner())

    run(main())
    asyncio.run(main())


def test_only_a_coroutine_can_be_run():
    with pytest.raises(ValueError, match="a coroutine was expected"):
        run(len)  # type: ignore[arg-type]


def test_a_loop_that_is_forgotten_is_closed_without_a_warning():
    loop = VirtualClockLoop()
    del loop
    gc.collect()


def test_no_descriptor_is_opened():
    async def main():
        await asyncio.sleep(1)
        return await asyncio.to_thread(lambda: len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    assert run(main()) == before


# Many runs on one loop


def test_time_and_tasks_go_on_from_run_to_run_until_the_reset():
    ticks = []

    async def ticker():
        while True:
            await asyncio.sleep(1)
            ticks.append(virtual_loop().time())

    async def start():
        asyncio.create_task(ticker())  # noqa: RUF006 - left running on purpose
        await asyncio.sleep(2.5)

    with VirtualRunner(start=NOON) as runner:
        runner.run(start())
        runner.run(asyncio.sleep(1))
        assert ticks == [1, 2, 3]
        assert runner.loop.now() == NOON + timedelta(seconds=3.5)
        runner.reset(NOON + timedelta(days=1))
        runner.run(asyncio.sleep(5))
        assert ticks == [1, 2, 3]
        assert runner.loop.now() == NOON + timedelta(days=1, seconds=5)
        assert runner.loop.jumps == 1


def test_a_reset_closes_generators_and_the_next_run_may_use_some():
    async def numbers():
        try:
            yield 1
        finally:
            closed.append(True)

    async def main():
        generator = numbers()
        kept.append(generator)
        await anext(generator)

    closed: list[bool] = []
    kept: list[object] = []
    with VirtualRunner() as runner:
        for count in (1, 2, 3):
            runner.run(main())
            runner.reset()
            assert len(closed) == count


def test_a_callback_of_one_run_does_not_reach_into_the_next():
    called = []

    async def main():
        virtual_loop().call_later(1, called.append, "timer")

    with VirtualRunner() as runner:
        runner.run(main())
        runner.reset()
        runner.run(asyncio.sleep(YEAR))
    assert called == []


def test_a_runner_goes_on_after_a_deadlock():
    async def stuck():
        await never()

    with VirtualRunner() as runner:
        for _ in range(2):
            with pytest.raises(DeadlockError):
                runner.run(stuck())
            assert runner.run(asyncio.sleep(1, "works")) == "works"


def test_the_time_of_a_running_loop_cannot_be_set():
    async def main():
        with pytest.raises(RuntimeError, match="between runs"):
            virtual_loop().restart()

    run(main())


def test_a_closed_runner_may_be_closed_again():
    with VirtualRunner() as runner:
        runner.close()


# Deadlocks


def deadlock_of(main, **options) -> DeadlockError:
    with pytest.raises(DeadlockError) as caught:
        run(main, **options)
    return caught.value


def test_a_deadlock_names_the_tasks_and_where_they_wait():
    async def waits_for_event():
        await asyncio.Event().wait()  # this line

    async def main():
        task = asyncio.create_task(waits_for_event(), name="reserve")
        await asyncio.sleep(5)
        await task

    error = deadlock_of(main())
    assert "\n" not in str(error)
    assert "deadlock" in str(error)
    assert "5 s" in str(error)
    line = waits_for_event.__code__.co_firstlineno + 1
    reserve, outer = sorted(error.tasks, key=lambda task: task.name != "reserve")
    assert reserve.name == "reserve"
    assert reserve.coroutine.endswith("waits_for_event")
    assert reserve.where.endswith(f"test_virtual_time.py:{line}")
    assert reserve.waits_for == "Event.wait"
    assert outer.waits_for == "task 'reserve'"
    assert str(reserve) in str(error)


def test_a_deadlock_is_found_through_generators_gather_and_queues():
    async def numbers():
        await never()
        yield 1

    async def consume():
        async for _ in numbers():
            pass

    async def main():
        await asyncio.gather(consume(), asyncio.Queue().get())

    waits = {task.waits_for for task in deadlock_of(main()).tasks}
    assert waits == {"a future", "Queue.get", "gather"}


def test_a_deadlock_of_many_tasks_is_one_short_line():
    async def main():
        await asyncio.gather(*(never() for _ in range(3)), *(asyncio.Event().wait() for _ in range(50)))

    error = deadlock_of(main())
    assert len(error.tasks) == 51
    assert "and 46 more" in str(error)


def test_tasks_clean_up_after_a_deadlock_in_virtual_time():
    cleaned = []

    async def main():
        try:
            await never()
        finally:
            await asyncio.sleep(3)
            cleaned.append(virtual_loop().time())

    deadlock_of(main())
    assert cleaned == [3]


def test_a_task_that_cannot_be_cancelled_is_left_behind(caplog):
    async def stubborn():
        while True:
            try:
                await never()
            except asyncio.CancelledError:
                resisted.append(True)

    resisted: list[bool] = []
    with VirtualRunner() as runner:
        for _ in range(2):
            with pytest.raises(DeadlockError):
                runner.run(stubborn())
            assert runner.run(asyncio.sleep(1, "works")) == "works"
    gc.collect()
    assert resisted == [True, True]
    assert caplog.records == []


def test_a_loop_that_only_polls_is_given_up():
    async def main():
        async def heartbeat():
            while True:  # noqa: ASYNC110 - that is the point
                await asyncio.sleep(1)

        beat = asyncio.create_task(heartbeat(), name="heartbeat")
        await never()
        beat.cancel()

    error = deadlock_of(main(), max_turns=1_000)
    assert "1,000 turns" in str(error)
    assert "heartbeat" in [task.name for task in error.tasks]


def test_a_timeout_ends_what_polls_without_time_moving():
    async def polls():
        while True:  # noqa: ASYNC110 - that is the point
            await asyncio.sleep(0)

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(polls(), 5)
        return virtual_loop().time()

    assert run(main(), max_turns=1_000) == 5


def test_who_watches_is_asked_before_a_deadlock_is_raised_the_last_one_first():
    asked = []

    def watcher(name, turns):
        def ask(error):
            asked.append(name)
            task.cancel()
            return turns

        return ask

    async def polls():
        while True:  # noqa: ASYNC110 - it is given up after the fewest turns
            await asyncio.sleep(0)

    async def main():
        nonlocal task
        task = asyncio.current_task()
        loop = virtual_loop()
        first = loop.watched(watcher("first", 10), 500)
        with first, loop.watched(watcher("second", 0), 1_000):
            with pytest.raises(asyncio.CancelledError):
                await polls()
            assert asked == ["second", "first"]
        with pytest.raises(asyncio.CancelledError), loop.watched(watcher("third", 10), 500):
            await never()
        assert asked == ["second", "first", "third"]

    task = None
    run(main())


@pytest.mark.parametrize("nap", [0, 1])
def test_a_task_that_is_let_go_never_runs_again(nap):
    naps = 0

    async def stubborn():
        nonlocal naps
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                naps += 1
                await asyncio.sleep(nap)

    async def main():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(3)
        virtual_loop().let_go(task)
        before = naps
        await asyncio.sleep(100)
        assert (naps, task.done()) == (before, False)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(), max_turns=1_000)


def test_a_timer_that_is_left_keeps_no_deadlock_hidden_for_ever():
    async def main():
        virtual_loop().call_later(YEAR, lambda: None)
        await never()

    assert f"{YEAR} s" in str(deadlock_of(main()))


def test_a_thread_of_the_users_own_may_end_what_looks_like_a_deadlock():
    async def main():
        loop, future, go = virtual_loop(), never(), threading.Event()

        def work():
            go.wait()
            loop.call_soon_threadsafe(future.set_result, None)

        thread = threading.Thread(target=work)
        thread.start()
        loop.call_soon(go.set)
        await future
        thread.join()

    run(main(), thread_grace=60)


def test_a_thread_that_does_nothing_hides_a_deadlock_only_for_the_grace():
    blocker = threading.Event()
    thread = threading.Thread(target=blocker.wait)
    thread.start()
    try:
        deadlock_of(never_ends(), thread_grace=0)
    finally:
        blocker.set()
        thread.join()


async def never_ends():
    await never()


# Threads


@pytest.mark.parametrize(
    ("timer", "age", "wait"),
    [
        (5.0, 0.0, 5.0),  # as long really as virtually
        (5.0, 2.0, 3.0),  # of which two have gone by
        (0.1, 0.0, 1.0),  # the grace
        (0.1, 1.0, None),
        (30.0, 0.0, 10.0),  # the limit
        (30.0, 11.0, None),
        (0.0, 0.0, None),  # due already
    ],
)
def test_a_timer_waits_for_a_job_as_long_really_as_it_is_away_within_grace_and_limit(monkeypatch, timer, age, wait):
    real, waits, blocker = iter([100.0]), [], threading.Event()
    monkeypatch.setattr("sagaz_core._threaded_loop.perf_seconds", lambda: next(real, 100.0 + age))

    async def main():
        loop = virtual_loop()
        monkeypatch.setattr(loop, "_wait_for_wake", lambda seconds: bool(waits.append(seconds)))
        job = loop.run_in_executor(None, blocker.wait)
        fired = loop.create_future()
        loop.call_later(timer, fired.set_result, None)
        await fired
        monkeypatch.undo()
        blocker.set()
        await job

    run(main(), thread_grace=1, thread_limit=10)
    assert waits == ([] if wait is None else [wait])


def test_a_job_in_a_thread_takes_no_virtual_time_and_lets_no_timer_overtake():
    async def main():
        loop, order = virtual_loop(), []
        sleeper = asyncio.create_task(asyncio.sleep(1e-6))
        sleeper.add_done_callback(lambda _task: order.append("timer"))
        ready = threading.Event()
        loop.call_soon(lambda: loop.call_soon(ready.set))
        await asyncio.to_thread(ready.wait)
        order.append("thread")
        assert loop.time() == 0
        await sleeper
        return order

    assert run(main(), thread_grace=60, thread_limit=60) == ["thread", "timer"]


def test_a_job_is_waited_for_when_there_is_no_timer():
    async def main():
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = virtual_loop().run_in_executor(pool, sum, [1, 2])
            second = virtual_loop().run_in_executor(None, sum, [3, 4])
            return await first, await second, virtual_loop().jumps

    assert run(main()) == (3, 7, 0)


def test_a_job_that_never_ends_is_left_behind_when_its_timeout_fires():
    blocker = threading.Event()

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.to_thread(blocker.wait)
        await asyncio.sleep(YEAR)  # the job that was given up holds nothing back
        return virtual_loop().time(), virtual_loop().jumps

    try:
        assert run(main(), thread_grace=0, thread_limit=0) == (5 + YEAR, 2)
    finally:
        blocker.set()


def test_the_error_of_a_job_is_raised_where_it_is_awaited():
    def fail():
        raise LookupError("in the thread")

    async def main():
        await asyncio.to_thread(fail)

    with pytest.raises(LookupError, match="in the thread"):
        run(main())


def test_a_thread_can_call_back_into_the_loop():
    async def answer():
        await asyncio.sleep(1)
        return 42

    def ask(loop):
        return asyncio.run_coroutine_threadsafe(answer(), loop).result()

    async def main():
        return await asyncio.to_thread(ask, virtual_loop())

    assert run(main(), thread_grace=0, thread_limit=0) == 42


def test_threads_are_used_again_within_a_runner_and_gone_after_it():
    with VirtualRunner() as runner:

        async def main():
            return await asyncio.to_thread(threading.get_ident)

        assert len({runner.run(main()) for _ in range(10)}) == 1
        workers = [thread for thread in threading.enumerate() if thread.name == "sagaz-virtual-time"]
    for worker in workers:
        worker.join()


def test_jobs_beyond_the_number_of_processors_run_at_once():
    count = 50

    async def main():
        barrier = threading.Barrier(count)
        await asyncio.gather(*(asyncio.to_thread(barrier.wait) for _ in range(count)))

    run(main())


def test_the_end_waits_for_a_job_that_still_runs_so_that_its_effect_is_seen():
    go, effects = threading.Event(), []

    def late():
        go.wait()
        effects.append("late")

    async def main():
        virtual_loop().run_in_executor(None, late)
        go.set()

    run(main(), thread_grace=60)
    assert effects == ["late"]


def test_a_thread_that_hangs_keeps_no_process_from_ending():
    code = """
import asyncio, threading
from sagaz_core.virtual_time import run
async def main():
    async with asyncio.timeout(5):
        await asyncio.to_thread(threading.Event().wait)
try:
    run(main(), thread_grace=0, thread_limit=0)
except TimeoutError:
    print("timed out")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("timed out\n", "")


def test_the_default_executor_can_be_replaced():
    async def main():
        virtual_loop().set_default_executor(pool)
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="mine") as pool:
        assert run(main()).startswith("mine")


def test_after_the_executor_was_shut_down_there_are_no_more_jobs():
    async def main():
        await virtual_loop().shutdown_default_executor()
        with pytest.raises(RuntimeError, match="Executor shutdown"):
            await asyncio.to_thread(int)

    run(main())


# What the loop does not have


@pytest.mark.parametrize(
    ("attempt", "named"),
    [
        (lambda: asyncio.open_connection("shop.example", 443), "shop.example:443"),
        (lambda: asyncio.start_server(print, "localhost", 80), "localhost:80"),
        (lambda: virtual_loop().getaddrinfo("shop.example", 443), "shop.example:443"),
        (lambda: virtual_loop().create_datagram_endpoint(print, remote_addr=("1.2.3.4", 53)), "1.2.3.4:53"),
        (lambda: virtual_loop().create_unix_connection(print, "/run/x.sock"), "/run/x.sock"),
        (lambda: virtual_loop().sock_connect(None, ("::1", 5432)), r"\[::1\]:5432"),
        (lambda: virtual_loop().add_reader(0, print), "add_reader"),
        (lambda: virtual_loop().sock_recv(None, 1), "recv"),
    ],
)
def test_network_calls_are_refused_with_the_address_and_noted(attempt, named):
    async def main():
        with pytest.raises(NetworkBlockedError, match=named):
            await attempt()

    with no_network() as block:
        run(main())
    assert len(block.attempts) == 1


def test_what_was_not_added_can_be_removed():
    with VirtualRunner() as runner:
        assert runner.loop.remove_reader(0) is False
        assert runner.loop.remove_writer(0) is False


def test_there_are_no_subprocesses_and_no_signals():
    async def main():
        with pytest.raises(NotImplementedError, match=r"subprocess\.run"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(NotImplementedError):
            virtual_loop().add_signal_handler(2, print)

    run(main())


# Frozen clocks


def test_the_frozen_clock_moves_with_the_loop():
    async def main():
        assert datetime.now(UTC) == NOON
        await asyncio.sleep(3600)
        return datetime.now(UTC), dt.date.today(), time.time(), clock.utc_now(), virtual_loop().now()  # noqa: DTZ011

    hour_later = NOON + timedelta(hours=1)
    with frozen_at(NOON):
        assert run(main()) == (hour_later, dt.date(2024, 2, 29), hour_later.timestamp(), hour_later, hour_later)
    assert datetime.now(UTC).year > 2024


def test_the_frozen_clock_is_seen_in_threads_too():
    async def main():
        await asyncio.sleep(3600)
        return await asyncio.to_thread(lambda: (datetime.now(UTC), time.time()))

    hour_later = NOON + timedelta(hours=1)
    with frozen_at(NOON):
        assert run(main()) == (hour_later, hour_later.timestamp())


def test_a_thousand_jumps_do_not_add_up_their_rounding():
    async def main():
        for _ in range(999):
            await asyncio.sleep(1 / 3)
        return datetime.now(UTC)

    with frozen_at(NOON):
        assert run(main()) == NOON + timedelta(seconds=333)


def test_a_clock_frozen_by_freezegun_moves_with_the_loop_even_without_real_asyncio():
    async def main():
        await asyncio.sleep(3600)
        return datetime.now(UTC)

    with freezegun.freeze_time(NOON):
        assert run(main()) == NOON + timedelta(hours=1)


def test_a_freeze_inside_the_coroutine_moves_and_so_does_the_one_around_it():
    async def main():
        with freezegun.freeze_time(NOON + timedelta(days=9)):
            await asyncio.sleep(60)
            inner = datetime.now(UTC)
        return inner, datetime.now(UTC)

    with frozen_at(NOON):
        assert run(main()) == (NOON + timedelta(days=9, minutes=1), NOON + timedelta(minutes=1))


def test_a_ticking_and_a_stepping_freeze_move_too():
    async def main():
        await asyncio.sleep(86_400)
        return datetime.now(UTC)

    with freezegun.freeze_time(NOON, tick=True):
        assert timedelta(days=1) <= run(main()) - NOON < timedelta(days=1, hours=1)
    with freezegun.freeze_time(NOON, auto_tick_seconds=10):
        assert timedelta(days=1) <= run(main()) - NOON <= timedelta(days=1, minutes=1)


@pytest.mark.parametrize("tick", [True, False])
def test_time_machine_moves_with_the_loop(tick):
    async def main():
        await asyncio.sleep(86_400)
        return datetime.now(UTC)

    with time_machine.travel(NOON, tick=tick):
        assert timedelta(days=1) <= run(main()) - NOON < timedelta(days=1, hours=1)


def test_frozen_clocks_can_be_left_where_they_are():
    async def main():
        await asyncio.sleep(86_400)
        return datetime.now(UTC)

    with frozen_at(NOON):
        assert run(main(), move_frozen=False) == NOON


def test_frozen_clocks_can_be_moved_by_hand_and_nothing_frozen_is_no_error():
    move_frozen_clocks(60)
    with frozen_at(NOON):
        move_frozen_clocks(60)
        assert datetime.now(UTC) == NOON + timedelta(minutes=1)
        move_frozen_clocks(1e18)
        assert datetime.now(UTC).year == 9999


def test_a_time_in_another_zone_is_frozen_as_the_same_moment():
    with frozen_at(NOON.astimezone(dt.timezone(timedelta(hours=-7)))):
        assert datetime.now(UTC) == NOON


def test_a_naive_time_cannot_be_frozen():
    with pytest.raises(NaiveTimeError), frozen_at(datetime(2024, 1, 1)):  # noqa: DTZ001 - that is the point
        pass


def test_what_waits_with_a_time_limit_is_not_frozen():
    with frozen_at(NOON), pytest.raises(queue.Empty):
        queue.Queue().get(timeout=0.001)
    with frozen_at(NOON):
        assert asyncio.run(asyncio.sleep(0.001, "awake")) == "awake"


def test_modules_are_looked_at_again_only_when_something_was_added(monkeypatch):
    with frozen_at(NOON):
        pass
    module = type(sys)("late_module")
    monkeypatch.setitem(sys.modules, "late_module", module)
    with frozen_at(NOON):
        pass
    module.clock = time.time
    module.other = len
    with frozen_at(NOON):
        assert module.clock() == NOON.timestamp()
    assert module.clock is time.time


def test_a_module_named_like_one_that_is_left_alone_is_frozen(monkeypatch):
    module = type(sys)("queue_of_orders")
    module.clock = time.time
    monkeypatch.setitem(sys.modules, "queue_of_orders", module)
    with frozen_at(NOON):
        assert module.clock() == NOON.timestamp()


def test_what_the_user_told_freezegun_to_ignore_stays_real(monkeypatch):
    module = type(sys)("payments_sdk")
    module.clock = time.time
    monkeypatch.setitem(sys.modules, "payments_sdk", module)
    freezegun.configure(extend_ignore_list=["payments_sdk"])
    try:
        with frozen_at(NOON):
            assert module.clock() > NOON.timestamp()
    finally:
        freezegun.config.reset_config()


# The clock module


def test_utc_now_is_aware_and_real_also_when_frozen():
    assert clock.utc_now().tzinfo is UTC
    with freezegun.freeze_time(NOON):
        assert clock.utc_now() == NOON
        assert type(clock.utc_now()) is type(NOON)
    with time_machine.travel(NOON, tick=False):
        assert clock.utc_now() == NOON


def test_a_plain_moment_keeps_its_zone_and_fold():
    zone = dt.timezone(timedelta(hours=2))
    with freezegun.freeze_time(NOON):
        fake = datetime.now(zone).replace(fold=1)
    real = clock.plain(fake)
    assert type(real) is type(NOON)
    assert (real, real.tzinfo, real.fold) == (NOON, zone, 1)
    assert clock.plain(NOON) is NOON


def test_durations_are_real_when_the_clock_is_frozen():
    with freezegun.freeze_time(NOON):
        assert clock.monotonic() != time.monotonic()
        assert clock.perf_seconds() != time.perf_counter()


def test_the_clock_is_real_when_it_is_first_imported_under_a_freeze():
    code = """
import freezegun
with freezegun.freeze_time("2024-02-29"):
    from sagaz_core import clock
    print(clock.new_id()[:4] != "018d", clock.monotonic() < 1e9, type(clock.utc_now()).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True True datetime\n"


def test_an_id_is_a_version_7_uuid_of_the_real_time():
    import uuid

    for frozen in (freezegun.freeze_time(NOON), time_machine.travel(NOON)):
        with frozen:
            made = uuid.UUID(clock.new_id())
        assert (made.version, made.variant) == (7, uuid.RFC_4122)
        assert abs(made.int >> 80) / 1000 > datetime(2025, 1, 1, tzinfo=UTC).timestamp()


def test_ids_always_increase_also_when_the_clock_stands_still_or_goes_back(monkeypatch):
    times = itertools.chain([5_000, 5_000, 4_000, 6_000], itertools.repeat(6_000))
    monkeypatch.setattr(clock, "_real_time_ms", lambda: next(times))
    make = clock._IdMaker()
    ids = [make() for _ in range(1_000)]
    assert ids == sorted(set(ids))
    assert ids[0].startswith("00000000-1388-7")


def test_a_counter_that_is_full_borrows_the_next_millisecond(monkeypatch):
    monkeypatch.setattr(clock, "_real_time_ms", lambda: 5_000)
    make = clock._IdMaker()
    make()
    make._counter = (1 << 42) - 2
    ids = [make() for _ in range(3)]
    assert [made[9:13] for made in ids] == ["1388", "1389", "1389"]
    assert ids == sorted(set(ids))


def test_ids_of_many_threads_are_different():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: [clock.new_id() for _ in range(1_000)], range(8)))
    assert len(set(itertools.chain.from_iterable(batches))) == 8_000
    assert all(batch == sorted(batch) for batch in batches)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ids_after_a_fork_are_different_even_if_the_lock_was_held():
    code = """
import os, sys
from sagaz_core import clock
clock.new_id()
clock._make_id._lock.acquire()
if os.fork() == 0:
    print(clock.new_id(), flush=True)
    os._exit(0)
os.wait()
clock._make_id._lock.release()
print(clock.new_id())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    child, parent = done.stdout.split()
    assert child != parent


def test_neither_the_package_nor_its_clock_imports_asyncio():
    code = "import sys, sagaz_core, sagaz_core.clock; print(sorted({'asyncio', 'uuid', 'random'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
