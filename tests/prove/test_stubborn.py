"""Calls that go on when they are cancelled: they are left, and said to be endless, in a search and in a single run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from sagaz_core import Outcome, Saga, World, explore
from sagaz_core.faults.plan import as_plan
from sagaz_core.prove import watch
from sagaz_core.prove.exploration import Exploration
from sagaz_core.prove.schedules import in_both_orders
from sagaz_core.prove.trial import Subject
from sagaz_core.prove.watch import watched_calls
from sagaz_core.virtual_time import VirtualRunner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_TURNS", 2_000)
    monkeypatch.setattr(watch, "_TURNS_TO_END", 100)


@pytest.fixture
def runner() -> Iterator[VirtualRunner]:
    with VirtualRunner() as runner:
        yield runner


async def nothing(ctx: Any) -> None: ...


async def sleeps(ctx: Any = None) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


going_on = [True]


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """Let what ignores that it is closed end at last, when the interpreter does."""
    yield
    going_on.clear()


async def polls(ctx: Any = None, *, going_on: list[bool] = going_on, suppress: Any = contextlib.suppress) -> None:
    while going_on:
        with suppress(BaseException):  # it ignores that it is closed, too
            await asyncio.sleep(0)


async def waits(ctx: Any) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


async def gathers(ctx: Any) -> None:
    await asyncio.gather(sleeps(), polls())


async def groups(ctx: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sleeps())


async def plainly_polls(ctx: Any) -> None:
    while True:  # noqa: ASYNC110 - that is what it is about
        await asyncio.sleep(0)


STUBBORN = [sleeps, polls, waits, gathers, groups]


def saga_of(last: Any, undo: Any = nothing, **options: Any) -> Saga[Any]:
    saga: Saga[Any] = Saga("stubborn").add_step("a", nothing, undo, in_doubt="compensate")
    return saga.add_step("b", last, nothing, in_doubt="compensate", **options)


def desk() -> World:
    world = World()
    world.fake({}, "desk")
    return world


def said(failures: Any) -> list[tuple[str, str | None]]:
    return [(outcome.verdict.value, outcome.findings[0].step) for outcome in failures]


def tried(exploration: Exploration) -> set[str]:
    return {str(outcome.plan) for outcome in exploration.outcomes}


def run_once(runner: VirtualRunner, saga: Saga[Any], *plans: str) -> list[Outcome]:
    async def main() -> list[Outcome]:
        with watched_calls(Subject(lambda: saga)) as subject:
            return [await in_both_orders(subject, as_plan(plan or None)) for plan in plans]

    return runner.run(main())


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize("last", STUBBORN)
def test_an_action_is_left_and_the_plans_are_tried_that_do_not_get_there(last: Any, mode: str) -> None:
    exploration = explore(saga_of(last), world=desk(), mode=mode)
    assert (exploration.mode, said(exploration.failures)) == ("packed", [("ENDLESS", "b")])
    finding = exploration.failures[0].findings[0]
    assert finding.sentence.startswith(
        "the action of step 'b' never ends, and goes on when it is cancelled, it waits at "
    )
    assert "test_stubborn.py:" in finding.sentence
    assert finding.advice.startswith("let asyncio.CancelledError out of the step")
    assert {"a@before", "a@after", "a@undo-fail"} & tried(exploration) == {"a@before", "a@after"}
    assert not exploration.complete


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize("undo", STUBBORN)
def test_a_compensation_is_left_though_it_is_shielded(undo: Any, mode: str) -> None:
    exploration = explore(saga_of(nothing, undo), world=desk(), mode=mode)
    assert said(exploration.failures) == [("ENDLESS", "a")]
    assert (
        exploration.failures[0].findings[0].sentence.startswith("the compensation of step 'a' never ends, and goes on")
    )
    assert "b@repeat" in tried(exploration)


@pytest.mark.parametrize("mode", ["auto", "packed"])
def test_a_timeout_does_not_end_it(mode: str) -> None:
    exploration = explore(saga_of(waits, timeout=5), world=desk(), mode=mode)
    assert said(exploration.failures) == [("ENDLESS", "b")]


def test_one_beside_others_is_named_and_they_are_not(runner: VirtualRunner) -> None:
    saga: Saga[Any] = Saga("beside")
    for name, act in {"a": nothing, "b": sleeps, "c": nothing}.items():
        saga.add_step(name, act, nothing, depends_on=[])
    assert said(run_once(runner, saga, "")) == [("ENDLESS", "b")]


@pytest.mark.parametrize("last", STUBBORN)
def test_single_runs_on_one_loop_are_judged_and_do_not_disturb_what_follows(last: Any, runner: VirtualRunner) -> None:
    loop, saga = runner.loop, saga_of(last)
    ended, endless, again = run_once(runner, saga, "a@before", "", "")
    assert (ended.verdict.value, ended.status.value) == ("CLEAN", "rolled_back")
    assert said([endless, again]) == [("ENDLESS", "b")] * 2
    for assertion in (endless.assert_sound, endless.assert_completed, endless.assert_compensated):
        with pytest.raises(AssertionError, match=r"^ENDLESS: the action of step 'b' never ends"):
            assertion()
    runner.reset()
    assert runner.loop is loop  # nothing of it was left to be ended
    sound: Saga[Any] = Saga("sound").add_step("a", lambda ctx: asyncio.sleep(5))
    run_once(runner, sound, "")[0].assert_completed()
    assert (runner.loop.time(), runner.loop.jumps) == (5, 1)


def test_a_single_run_of_what_waits_or_polls_is_judged_as_well(runner: VirtualRunner) -> None:
    (outcome,) = run_once(runner, saga_of(plainly_polls), "")
    assert said([outcome]) == [("ENDLESS", "b")]
    sentence = outcome.findings[0].sentence
    assert "never ends, it waits at " in sentence
    assert "gave up after 2,000 turns of the loop" in sentence


def test_many_turns_that_come_to_an_end_are_no_failure(monkeypatch: pytest.MonkeyPatch, runner: VirtualRunner) -> None:
    monkeypatch.undo()

    async def patient(ctx: Any) -> None:
        for _ in range(100_000):
            await asyncio.sleep(0)
        for _ in range(1_000):
            await asyncio.sleep(86_400 * 30)

    run_once(runner, saga_of(patient, timeout=86_400 * 365 * 100), "")[0].assert_completed()


@pytest.mark.parametrize("mode", ["auto", "packed"])
def test_polling_under_a_timeout_is_ended_by_it(mode: str) -> None:
    exploration = explore(saga_of(plainly_polls, timeout=5), world=desk(), mode=mode)
    assert exploration.failures == ()
    assert exploration.fails_alone.startswith("without faults the saga ends rolled_back at 'b' (StepTimeoutError")


@pytest.mark.parametrize("undo", [nothing, None])
def test_a_late_effect_that_never_comes_is_not_waited_for(undo: Any) -> None:
    async def never(ctx: Any) -> None:
        await asyncio.get_running_loop().create_future()

    saga: Saga[Any] = Saga("late").add_step("a", never, undo, timeout=5, in_doubt="compensate" if undo else "ignore")
    exploration = explore(saga, mode="packed")
    assert exploration.failures == ()
    assert "a@late" in tried(exploration)


def test_a_late_effect_that_ignores_that_it_is_cancelled_is_left(runner: VirtualRunner) -> None:
    saga: Saga[Any] = Saga("late").add_step("a", waits, timeout=5)
    assert said(run_once(runner, saga, "a@late")) == [("ENDLESS", "a")]
