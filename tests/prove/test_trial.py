"""One run under a plan: what it costs, as counts."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from sagaz_core import FaultPlan, Saga, StepRejected
from sagaz_core.events import StepStarted
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.saga.step import Backoff
from sagaz_core.virtual_time import VirtualRunner, run


async def nothing(ctx: Any) -> None:
    return None


async def refuse(ctx: Any) -> None:
    raise StepRejected("sold out")


def chain(last: Any = nothing) -> Saga[Any]:
    saga: Saga[Any] = Saga("chain")
    for name, act in (("a", nothing), ("b", nothing), ("c", last)):
        saga.add_step(name, act, nothing, retries=2, timeout=5.0, compensation_timeout=5.0, in_doubt="compensate")
    return saga


FATAL = ("b@before", "b@after", "b@hang", "b@late", "end@before", "b@undo-fail", "b@undo-hang")
BENIGN = ("b@flaky", "b@flaky-after", "b@repeat")


@pytest.mark.parametrize("text", BENIGN)
def test_a_trial_leaves_nothing_to_the_garbage_collector(text: str) -> None:
    check_garbage(text, nothing)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="frames keep their callers there: a kept error, the outcome")
@pytest.mark.parametrize("text", [*FATAL, *BENIGN])
@pytest.mark.parametrize("last", [nothing, refuse])
def test_nor_does_one_whose_outcome_keeps_the_error(text: str, last: Any) -> None:
    check_garbage(text, last)


def check_garbage(text: str, last: Any) -> None:
    saga, plan = chain(last), FaultPlan.parse(text)

    async def trials() -> int:
        return sum([len((await run_trial(Subject(lambda: saga), plan)).evidence.ledger.entries) for _ in range(3)])

    with VirtualRunner() as runner:
        assert runner.run(trials())
        gc.collect()
        gc.disable()
        try:
            runner.run(trials())
            assert gc.collect() == 0
        finally:
            gc.enable()


def test_while_a_step_waits_for_its_retry_those_beside_it_begin_and_those_behind_them() -> None:
    called: list[str] = []

    def act(name: str, fails: bool = False) -> Any:
        async def action(ctx: Any) -> None:
            called.append(name)
            if fails and called.count(name) == 1:
                raise OSError("once")

        return action

    saga: Saga[Any] = Saga("beside")
    saga.add_step("first", act("first"), depends_on=[])
    saga.add_step("again", act("again", fails=True), depends_on=[], retries=1)
    saga.add_step("beside", act("beside"), depends_on=[])
    saga.add_step("behind", act("behind"), depends_on=["first"])
    run(run_trial(Subject(lambda: saga)))
    assert called[:2] == ["first", "again"]
    assert (sorted(called[2:4]), called[4:]) == (["behind", "beside"], ["again"])


def test_events_have_the_times_of_the_virtual_clock() -> None:
    saga: Saga[Any] = Saga("slow")
    saga.add_step("a", nothing, nothing, retries=2, backoff=Backoff(first=30.0, factor=2.0, cap=3600.0))

    async def times() -> list[float]:
        outcome = await run_trial(Subject(lambda: saga), FaultPlan.parse("a@flaky:2"))
        first = outcome.events[0].at
        return [(event.at - first).total_seconds() for event in outcome.events if isinstance(event, StepStarted)]

    assert run(times()) == [0.0, 30.0, 90.0]
