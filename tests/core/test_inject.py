"""Every kind of fault happens as its name says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dags import Watched, World

from sagaz_core import Backoff, FaultPlan, Saga, SagaStatus, fail
from sagaz_core.errors import InjectedFaultError
from sagaz_core.events import CompensationSucceeded, StepSucceeded
from sagaz_core.faults.inject import Injector, SimulatedCrash
from sagaz_core.state import SagaState
from sagaz_core.storage.codec import decode, encode
from sagaz_core.virtual_time import run


def order(world: World) -> Saga[Any]:
    def noting(mark: str, name: str) -> Any:
        async def note(ctx: Any) -> None:
            world.note(mark, name)

        return note

    saga: Saga[Any] = Saga("order")
    for name in "abc":
        saga.add_step(
            name,
            noting("do", name),
            noting("undo", name),
            timeout=5,
            retries=1,
            backoff=Backoff(1),
            compensation_timeout=5,
            compensation_retries=1,
        )
    return saga


def under(plan: str | FaultPlan) -> tuple[list[str], Any, Injector]:
    """Run under the plan, taking over whenever the process dies; return the log, the state and the injector."""
    world = World()
    injector = Injector(FaultPlan.parse(plan) if isinstance(plan, str) else plan)
    watched = Watched(order(world))
    options: dict[str, Any] = {"interceptors": (injector,), "observers": (injector.observe,)}

    async def main() -> None:
        try:
            await asyncio.ensure_future(watched.run({}, **options))
        except asyncio.CancelledError:
            pass
        except SimulatedCrash:
            assert watched.journal is not None
            state = SagaState.from_data(decode(encode(watched.journal.state.to_data())))
            await watched.resume(state, **options)
        await injector.deliver_late()

    run(main())
    assert watched.journal is not None
    return [f"{'-' if mark == 'undo' else ''}{step}" for mark, step in world.log], watched.journal.state, injector


@pytest.mark.parametrize(
    ("plan", "log", "status", "stuck"),
    [
        ("b@before", "a -a", "rolled_back", ()),
        ("b@after", "a b b -a", "rolled_back", ()),
        ("b@hang", "a -a", "rolled_back", ()),
        ("b@late", "a -a b b", "rolled_back", ()),
        ("b@cancel", "a b -a", "rolled_back", ()),
        ("b@flaky", "a b c", "completed", ()),
        ("b@flaky-after", "a b b c", "completed", ()),
        ("b@flaky:2", "a -a", "rolled_back", ()),
        ("b@crash", "a b b c", "completed", ()),
        ("b@crash-recorded", "a b c", "completed", ()),
        ("b@repeat", "a b b c", "completed", ()),
        ("b#1@before", "a b c", "completed", ()),
        ("b#2@before+b#1@before", "a -a", "rolled_back", ()),
        ("end@before", "a b c -c -b -a", "rolled_back", ()),
        ("b@undo-fail", "a b c -c -a", "failed", ("b",)),
        ("b@undo-fail-after", "a b c -c -b -b -a", "failed", ("b",)),
        ("b@undo-hang", "a b c -c -a", "failed", ("b",)),
        ("b@undo-flaky", "a b c -c -b -a", "rolled_back", ()),
        ("b@undo-flaky-after", "a b c -c -b -b -a", "rolled_back", ()),
        ("b@undo-crash", "a b c -c -b -b -a", "rolled_back", ()),
        ("b@undo-crash-recorded", "a b c -c -b -a", "rolled_back", ()),
        ("b@undo-repeat", "a b c -c -b -b -a", "rolled_back", ()),
        ("c@before+a@undo-fail", "a b -b", "failed", ("a",)),
    ],
)
def test_each_kind_happens_as_it_says(plan: str, log: str, status: str, stuck: Any) -> None:
    found, state, injector = under(plan)
    assert " ".join(found) == log
    assert (state.status, state.stuck) == (SagaStatus(status), stuck)
    assert injector.missed == []


def test_what_is_raised_can_be_given() -> None:
    class DeclinedError(Exception): ...

    for exception in (DeclinedError, DeclinedError("no")):
        _, state, _ = under(fail.before("b", exception))
        assert state.error is not None
        assert state.error.type.endswith("DeclinedError")
    _, state, _ = under("b@before")
    assert state.error.type.endswith(InjectedFaultError.__name__)
    assert state.error.message == "injected by b@before"


def test_a_fault_that_never_happens_is_known() -> None:
    _, state, injector = under("b#3@before")
    assert state.status is SagaStatus.COMPLETED
    assert list(map(str, injector.missed)) == ["b#3@before"]
    _, _, injector = under("a@before+c@after")
    assert list(map(str, injector.missed)) == ["c@after"]


def test_a_crash_at_an_attempt_is_at_that_attempt() -> None:
    found, _, injector = under("b#1@before+b#2@crash-recorded")
    assert (found, injector.missed) == (["a", "b", "c"], [])
    _, _, injector = under("b#2@crash-recorded")
    assert list(map(str, injector.missed)) == ["b#2@crash-recorded"]


def test_the_process_dies_after_what_it_recorded() -> None:
    for plan, kind in [("b@crash-recorded", StepSucceeded), ("b@undo-crash-recorded", CompensationSucceeded)]:
        injector = Injector(FaultPlan.parse(plan))
        watched = Watched(order(World()))
        with pytest.raises(SimulatedCrash):
            run(watched.run(interceptors=(injector,), observers=(injector.observe,)))
        assert watched.journal is not None
        last = watched.journal.events[-1]
        assert isinstance(last, kind)
        assert last.step == "b"
