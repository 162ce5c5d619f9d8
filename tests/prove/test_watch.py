"""A step that keeps the event loop for itself is ended and named; how long a search may take."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from queue import SimpleQueue
from types import FunctionType
from typing import Any

import pytest

from sagaz_core import Outcome, Saga, World, explore
from sagaz_core.errors import UsageError
from sagaz_core.prove import explorer, patience, scripted, watch
from sagaz_core.prove.budget import deadline, seconds_of
from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.endless import NeverEndsError, NeverYieldsError
from sagaz_core.prove.patience import watched
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.prove.watch import watched_calls
from sagaz_core.virtual_time import VirtualClockLoop, run

TICK = 0.001


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look a thousand times a second, and leave nothing behind."""
    monkeypatch.setattr(patience, "_TICK", TICK)
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def spin() -> None:
    while True:
        pass


def test_what_never_yields_is_ended_and_named() -> None:
    with pytest.raises(Stopped) as stopped, watched(lambda: (1, "the action of step 'a'"), patience=3 * TICK):
        spin()
    assert isinstance(stopped.value.error, NeverYieldsError)
    assert str(stopped.value.error).startswith(
        "the action of step 'a' did not yield for 0.003 s: let it await what it "
    )


def test_calls_that_follow_each_other_are_left_alone() -> None:
    looked = 0

    def call() -> tuple[int, str]:
        nonlocal looked
        looked += 1
        return looked, "the action of step 'a'"

    with watched(call, patience=3 * TICK):
        while looked < 20:
            pass


def test_time_between_calls_is_nobodys() -> None:
    looked = 0

    def call() -> tuple[int, str]:
        nonlocal looked
        looked += 1
        return 1, ""

    with watched(call, patience=3 * TICK):
        while looked < 20:
            pass


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize("quiet_runs", [0, 2])
def test_a_step_of_an_explored_saga_is_named(mode: str, quiet_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    desk: dict[str, Any] = {"runs": 0}
    world = World()
    world.fake(desk, "desk")
    first = iter(range(quiet_runs))

    def act(ctx: Any) -> None:
        if next(first, None) is None:
            spin()

    monkeypatch.setattr(explorer, "watched", lambda call: watched(call, patience=5 * TICK))
    saga: Saga[Any] = Saga("spins")
    saga.add_step("greedy", act, lambda ctx: None)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.mode == "packed"
    assert exploration.failures[0].verdict.value == "ENDLESS"
    said = exploration.failures[0].findings[0].sentence
    assert said.startswith("the action of step 'greedy' did not yield for 0.005 s: let it await")
    assert mode == "packed" or exploration.reason == said
    assert desk == {"runs": 0}


def run_once(saga: Saga[Any]) -> Outcome:
    async def main() -> Outcome:
        with watched_calls(Subject(lambda: saga)) as subject:
            return await run_trial(subject)

    return run(main())


@pytest.mark.parametrize("undo", [False, True])
def test_a_step_is_named_in_a_single_run_too(undo: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 5 * TICK)
    saga: Saga[Any] = Saga("spins")
    saga.add_step("greedy", fails if undo else lambda ctx: spin(), lambda ctx: spin(), in_doubt="compensate")
    (finding,) = run_once(saga).findings
    assert (finding.verdict.value, finding.step) == ("ENDLESS", "greedy")
    what = "compensation" if undo else "action"
    assert finding.sentence.startswith(f"the {what} of step 'greedy' did not yield for 0.005 s: let it await what it ")


def test_a_run_in_real_time_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 5 * TICK)
    looked: list[object] = []

    async def act(ctx: Any) -> None:
        looked.append(signal.getitimer(signal.ITIMER_REAL))

    async def main() -> Outcome:
        saga: Saga[Any] = Saga("patient").add_step("a", act)
        with watched_calls(Subject(lambda: saga)) as subject:
            return await run_trial(subject)

    assert asyncio.run(main()).findings == ()
    assert looked == [(0.0, 0.0)]


def test_a_person_who_debugs_a_step_may_take_long() -> None:
    looked = 0

    def call() -> tuple[int, str]:
        nonlocal looked
        looked += 1
        return 1, "the action of step 'a'"

    def interaction() -> None:
        while looked < 20:
            pass

    at_the_prompt = FunctionType(interaction.__code__, {"__name__": "pdb"}, closure=interaction.__closure__)
    with watched(call, patience=3 * TICK):
        at_the_prompt()


def test_a_timer_that_a_step_sets_for_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: object) -> None: ...

    before = signal.getsignal(signal.SIGALRM)
    try:
        with watched(lambda: (1, "the action of step 'a'")):
            signal.signal(signal.SIGALRM, theirs)
            signal.setitimer(signal.ITIMER_REAL, 3600)
        assert signal.getsignal(signal.SIGALRM) is theirs
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 3000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_steps_side_by_side_are_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(ctx: Any) -> None:
        await asyncio.sleep(1)
        spin()

    monkeypatch.setattr(explorer, "watched", lambda call: watched(call, patience=5 * TICK))
    saga: Saga[Any] = Saga("spins").add_step("a", waits, depends_on=[]).add_step("b", waits, depends_on=[])
    first = explore(saga).failures[0].findings[0]
    assert (first.verdict.value, "did not yield" in first.sentence) == ("ENDLESS", True)


async def nothing(ctx: Any) -> None: ...


async def waits_for_ever(ctx: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def polls(ctx: Any) -> None:
    while True:  # noqa: ASYNC110  # that is what it is about
        await asyncio.sleep(1)


async def fails(ctx: Any) -> None:
    raise OSError("no")


def ending(last: Any, undo: Any = nothing, **options: Any) -> tuple[Saga[Any], World]:
    world = World()
    world.fake({}, "desk")
    saga: Saga[Any] = Saga("endless").add_step("a", nothing, undo, in_doubt="compensate")
    return saga.add_step("b", last, nothing, in_doubt="compensate", **options), world


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_TURNS", 1_000)
    monkeypatch.setattr(watch, "MOST_ATTEMPTS", 50)
    monkeypatch.setattr(scripted, "MOST_ATTEMPTS", 50)


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize(
    ("last", "options", "said"),
    [
        (waits_for_ever, {}, "never ends, it waits at *test_watch.py:* for a future: deadlock: nothing is left *"),
        (polls, {}, "never ends, it waits at *test_watch.py:* for sleep: gave up after 1,000 turns of the loop *"),
        (fails, {"retries": 10**9}, "was tried 50 times in one run, and goes on"),
    ],
)
@pytest.mark.usefixtures("soon")
def test_a_saga_that_never_ends_is_named_and_tried_as_far_as_it_gets(
    last: Any, options: Any, said: str, mode: str
) -> None:
    saga, world = ending(last, **options)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.mode == "packed"
    assert [(str(o.plan), o.verdict.value, o.findings[0].step) for o in exploration.failures] == [("", "ENDLESS", "b")]
    assert fnmatch(exploration.failures[0].findings[0].sentence, f"the action of step 'b' {said}")
    assert mode == "packed" or exploration.reason == exploration.failures[0].findings[0].sentence
    assert not exploration.complete
    assert set(exploration.not_run.values()) == {"what comes after a call that never ends"}
    assert {"a@before", "a@after"} <= {str(outcome.plan) for outcome in exploration.outcomes}
    assert "ended" not in exploration.failures[0].explain().splitlines()[0]
    with pytest.raises(AssertionError, match=r"^ENDLESS: the action of step 'b'"):
        exploration.assert_sound()


def test_a_compensation_that_never_ends_is_named_though_it_is_shielded() -> None:
    saga, world = ending(nothing, waits_for_ever)
    exploration = explore(saga, world=world)
    assert [(o.verdict.value, o.findings[0].step) for o in exploration.failures] == [("ENDLESS", "a")]
    assert exploration.reason.startswith("the compensation of step 'a' never ends, it waits at ")


def test_a_step_with_a_timeout_ends() -> None:
    saga, world = ending(waits_for_ever, timeout=5)
    exploration = explore(saga, world=world)
    assert (exploration.mode, exploration.failures) == ("merged", ())


def polling(seconds: float) -> Any:
    async def poll(ctx: Any) -> None:
        while True:  # noqa: ASYNC110  # that is what it is about
            await asyncio.sleep(seconds)

    return poll


@pytest.mark.parametrize("mode", ["merged", "packed"])
@pytest.mark.parametrize("seconds", [0, 0.001])
def test_a_step_that_polls_under_a_timeout_ends_by_it_and_never_comes_when_it_is_late(
    seconds: float, mode: str
) -> None:
    saga, world = ending(polling(seconds), timeout=5)
    exploration = explore(saga, world=world, mode=mode)
    assert (exploration.mode, exploration.failures) == (mode, ())
    assert mode == "merged" or "b@late" in {str(outcome.plan) for outcome in exploration.outcomes}


@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_one_that_keeps_time_from_moving_is_waited_for_at_length_only_once(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MOST_TURNS", 80_000)
    turns, turn = 0, VirtualClockLoop._run_once

    def counted(loop: VirtualClockLoop) -> None:
        nonlocal turns
        turns += 1
        turn(loop)

    monkeypatch.setattr(VirtualClockLoop, "_run_once", counted)
    saga, world = ending(polling(0), timeout=5)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.executions > 10
    # An eighth of them until it is clear that it polls, with a fork of the saga and without; then a thousandth a call.
    assert 10_000 < turns < 30_000


def test_one_of_several_steps_side_by_side_never_ends() -> None:
    saga: Saga[Any] = Saga("beside")
    for name, act in {"a": nothing, "b": waits_for_ever, "c": nothing}.items():
        saga.add_step(name, act, nothing, depends_on=[], in_doubt="compensate")
    failures = explore(saga).failures
    assert [(o.verdict.value, o.findings[0].step) for o in failures] == [("ENDLESS", "b")]


def test_a_mode_that_was_asked_for_is_not_left_for_another() -> None:
    saga, world = ending(waits_for_ever)
    with pytest.raises(NeverEndsError, match=r"^the action of step 'b' never ends"):
        explore(saga, world=world, mode="merged")


def test_polling_that_comes_to_an_end_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_TURNS", 1_000)

    async def patient(ctx: Any) -> None:
        for _ in range(400):
            await asyncio.sleep(1)

    saga, world = ending(patient)
    assert explore(saga, world=world).failures == ()  # all of them together are more


def test_a_thread_that_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: SimpleQueue[None] = SimpleQueue()  # which a signal's handler may be in twice

    def call(calls: Any) -> tuple[int, str]:
        looked.put(None)
        found: tuple[int, str] = calls()
        return found

    def takes_long(ctx: Any) -> None:
        for _ in range(100):  # until it was looked at more often than one who does not wait would be
            looked.get(timeout=30)

    async def act(ctx: Any) -> None:
        await asyncio.to_thread(takes_long, ctx)

    monkeypatch.setattr(explorer, "watched", lambda calls: watched(lambda: call(calls), patience=50 * TICK))
    saga: Saga[Any] = Saga("patient").add_step("a", act)
    assert explore(saga, kinds="before").failures == ()


def test_the_signal_of_another_is_left_to_it() -> None:
    def theirs(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, theirs)
    try:
        with watched(lambda: (1, "the action of step 'a'"), patience=0):
            assert signal.getsignal(signal.SIGALRM) is theirs
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_another_thread_explores_without_being_watched() -> None:
    modes: list[str] = []

    def search() -> None:
        world = World()
        world.fake({}, "desk")
        saga: Saga[Any] = Saga("apart")
        saga.add_step("a", lambda ctx: None)
        modes.append(explore(saga, world=world, depth=1).mode)

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert modes == ["merged"]


# ---- budgets


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("500ms", 0.5), ("1h", 3600), (" 1.5s ", 1.5), ("0.25m", 15)]
)
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "0s", "0.0ms", "1e3s", "1 s", "1d", "1s1s", "nan", "٣s", "9" * 99]
)
def test_anything_else_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError) as error:
        seconds_of(text)
    assert str(error.value) == f"a budget of {text!r}: write a number and ms, s, m or h, such as 30s"


def test_time_is_up_when_so_many_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sagaz_core.prove.budget.monotonic", lambda: now)
    over, never = deadline(5.0), deadline(None)
    now = 104.9
    assert not over()
    now = 105.0
    assert over()
    assert not never()
