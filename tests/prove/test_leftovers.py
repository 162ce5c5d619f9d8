"""What a step begins and does not end is found: in a run from the start, and in a search that forks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from sagaz_core import Saga, World, explore
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.explorer import aexplore
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.virtual_time import run

Step = Callable[[Any], Awaitable[None]]


def saga_of(*steps: Step, undo: Step | None = None) -> tuple[Saga[Any], World]:
    """A chain of steps, whose effect each is to be counted."""
    desk: dict[str, int] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("leaves")
    for step in steps:

        async def act(ctx: Any, step: Step = step) -> None:
            await step(ctx)
            desk[step.__name__] = 1

        async def back(ctx: Any, *, step: Step = step) -> None:
            if undo is not None:
                await undo(ctx)
            desk.pop(step.__name__, None)

        saga.add_step(step.__name__, act, back, retries=1)
    return saga, world


def found_from_the_start(*steps: Step, plan: FaultPlan = NO_FAULTS, undo: Step | None = None) -> tuple[Finding, ...]:
    saga, world = saga_of(*steps, undo=undo)
    return run(run_trial(Subject(lambda: saga, {}, world=world), plan)).findings


def found_by_forking(*steps: Step) -> list[Finding]:
    saga, world = saga_of(*steps)
    exploration = explore(saga, world=world, mode="merged", kinds="before")
    assert exploration.mode == "merged"
    return [finding for outcome in exploration.failures for finding in outcome.findings]


async def sends_mail() -> None:
    await asyncio.sleep(3600)


def tick() -> None: ...


async def rows() -> AsyncIterator[int]:
    try:
        for number in range(5):
            yield number
    finally:
        await asyncio.sleep(0)


held: list[Any] = []


async def leaves_a_task(ctx: Any) -> None:
    held.append(asyncio.create_task(sends_mail()))


async def leaves_a_named_task(ctx: Any) -> None:
    held.append(asyncio.create_task(sends_mail(), name="mailer"))


async def leaves_a_timer(ctx: Any) -> None:
    asyncio.get_running_loop().call_later(3600, tick)


async def leaves_a_future_s_timer(ctx: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(3600, loop.create_future().cancel)


async def leaves_a_generator(ctx: Any) -> None:
    async for _ in rows():
        break


async def holds_a_generator(ctx: Any) -> None:
    held.append(generator := rows())
    await anext(generator)


LEAVE = {
    leaves_a_task: "left a task running (sends_mail at ",
    leaves_a_named_task: "left a task running (mailer at ",
    leaves_a_timer: "left a timer set (tick at ",
    leaves_a_future_s_timer: "left a timer set (Future.cancel)",
    leaves_a_generator: "left an asynchronous generator open (rows at ",
    holds_a_generator: "left an asynchronous generator open (rows at ",
}


@pytest.mark.parametrize("step", LEAVE, ids=lambda step: step.__name__)
def test_what_a_step_leaves_is_found_in_a_run_from_the_start(step: Step) -> None:
    (finding,) = found_from_the_start(step)
    assert (finding.verdict, finding.step) == (Verdict.ORPHAN, step.__name__)
    assert f"the action of {step.__name__!r} {LEAVE[step]}" in finding.sentence
    assert "Future" in finding.sentence or "test_leftovers.py:" in finding.sentence


@pytest.mark.parametrize("step", LEAVE, ids=lambda step: step.__name__)
def test_what_a_step_leaves_is_found_by_a_search_that_forks(step: Step) -> None:
    (finding,) = found_by_forking(step)
    assert (finding.verdict, finding.step) == (Verdict.ORPHAN, step.__name__)
    assert LEAVE[step] in finding.sentence


def test_what_a_search_notices_does_not_keep_it_from_merging() -> None:
    saga, world = saga_of(leaves_a_timer, ends_its_task, waits_with_a_timeout)
    exploration = explore(saga, world=world, kinds=["before", "flaky", "undo-flaky", "undo-crash"])
    assert (exploration.mode, exploration.reason) == ("merged", "")
    assert [outcome.findings[0].step for outcome in exploration.failures] == ["leaves_a_timer"]


def test_what_a_compensation_leaves_is_found() -> None:
    (finding,) = found_from_the_start(ends_its_task, plan=FaultPlan.parse("end@before"), undo=leaves_a_timer)
    assert "the compensation of 'ends_its_task' left a timer set" in finding.sentence


def test_all_that_one_step_leaves_is_one_finding() -> None:
    async def leaves_two(ctx: Any) -> None:
        await leaves_a_timer(ctx)
        await leaves_a_generator(ctx)

    (finding,) = found_from_the_start(leaves_two)
    assert "left a timer set (tick at " in finding.sentence
    assert " and an asynchronous generator open (rows at " in finding.sentence


async def ends_its_task(ctx: Any) -> None:
    task = asyncio.create_task(sends_mail())
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def cancels_its_timer(ctx: Any) -> None:
    asyncio.get_running_loop().call_later(3600, tick).cancel()


async def waits_for_its_timer(ctx: Any) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_later(1, done.set_result, None)
    await done


async def waits_with_a_timeout(ctx: Any) -> None:
    async with asyncio.timeout(3600):
        await asyncio.sleep(1)
    await asyncio.wait_for(asyncio.sleep(1), 3600)
    with suppress(TimeoutError):
        await asyncio.wait_for(sends_mail(), 1)


async def reads_to_the_end(ctx: Any) -> None:
    async for _ in rows():
        pass


async def closes_its_generator(ctx: Any) -> None:
    async with aclosing(rows()) as generator:  # type: ignore[type-var]
        async for _ in generator:
            break


async def uses_a_context_manager(ctx: Any) -> None:
    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        yield

    async with connection():
        await asyncio.sleep(1)


async def gathers(ctx: Any) -> None:
    await asyncio.gather(*(asyncio.sleep(i) for i in range(3)))
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(1))
    await asyncio.to_thread(tick)


TIDY = [
    ends_its_task,
    cancels_its_timer,
    waits_for_its_timer,
    waits_with_a_timeout,
    reads_to_the_end,
    closes_its_generator,
    uses_a_context_manager,
    gathers,
]


@pytest.mark.parametrize("plan", ["none", "end@before", "gathers@flaky", "gathers@crash", "gathers@cancel"])
def test_what_a_step_ends_raises_no_alarm(plan: str) -> None:
    faults = NO_FAULTS if plan == "none" else FaultPlan.parse(plan)
    saga, world = saga_of(*TIDY)
    assert run(run_trial(Subject(lambda: saga, {}, world=world), faults)).evidence.noticed == ()


def test_what_steps_end_raises_no_alarm_in_a_search_that_forks() -> None:
    assert found_by_forking(*TIDY) == []


def test_what_ran_beside_a_saga_is_not_its_own() -> None:
    async def both() -> tuple[Finding, ...]:
        loop = asyncio.get_running_loop()
        beside = asyncio.create_task(begins_things())
        saga, world = saga_of(waits_for_its_timer, waits_with_a_timeout)
        outcome = await run_trial(Subject(lambda: saga, {}, world=world))
        beside.cancel()
        assert loop.time() > 1
        return outcome.findings

    async def begins_things() -> None:
        await leaves_a_timer({})
        await leaves_a_generator({})
        await asyncio.gather(sends_mail(), sends_mail())

    assert run(both()) == ()


def test_a_task_that_died_with_its_process_is_not_left() -> None:
    async def starts_a_task_once(ctx: Any) -> None:
        if not held:
            await leaves_a_task(ctx)

    held.clear()
    assert found_from_the_start(starts_a_task_once, plan=FaultPlan.parse("starts_a_task_once@crash")) == ()


def test_what_is_begun_for_the_saga_that_takes_over_is_not_the_dead_one_s() -> None:
    held.clear()

    def make() -> Saga[Any]:
        held.append(asyncio.get_running_loop().create_task(sends_mail()))  # as a pool of connections begins it
        return saga_of(waits_for_its_timer, gathers)[0]

    assert run(run_trial(Subject(make), FaultPlan.parse("gathers@crash"))).evidence.noticed == ()


def test_what_a_probe_leaves_is_not_the_last_step_s() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def first_row() -> int:
        async for row in rows():
            return row
        return 0

    saga, _ = saga_of(gathers)
    world = World()
    world.probe("rows", first_row)
    assert run(run_trial(Subject(lambda: saga, {}, world=world))).evidence.noticed == ()


def test_what_an_interceptor_around_the_trial_begins_is_not_the_step_s() -> None:
    class Metrics:
        async def intercept(self, call: Any, proceed: Callable[[], Awaitable[Any]]) -> Any:
            result = await proceed()
            asyncio.get_running_loop().call_later(5, tick)
            return result

    saga, world = saga_of(gathers)
    subject = Subject(lambda: saga, {}, world=world, interceptors=(Metrics(),))
    assert run(run_trial(subject)).evidence.noticed == ()


@pytest.mark.parametrize("forked", [True, False])
def test_a_loop_that_is_not_ours_shows_tasks(forked: bool) -> None:
    async def found() -> list[str]:
        saga, world = saga_of(leaves_a_named_task)
        if forked:
            outcomes = (await aexplore(saga, world=world, kinds="before", depth=1)).failures
        else:
            outcomes = (await run_trial(Subject(lambda: saga, {}, world=world)),)
        return [finding.sentence for outcome in outcomes for finding in outcome.findings]

    assert any("left a task running (mailer at " in sentence for sentence in asyncio.run(found()))


def test_tasks_that_others_begin_on_a_loop_that_is_not_ours_are_not_the_saga_s() -> None:
    async def waits(ctx: Any) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def both() -> tuple[Finding, ...]:
        mails: list[asyncio.Task[None]] = []

        async def begins() -> None:
            while len(mails) < 3:
                mails.append(asyncio.create_task(sends_mail()))
                await asyncio.sleep(0)

        beside = asyncio.create_task(begins())
        saga, world = saga_of(waits)
        outcome = await run_trial(Subject(lambda: saga, {}, world=world))
        await beside
        for mail in mails:
            mail.cancel()
        return outcome.findings

    assert asyncio.run(both()) == ()
