"""Where the engine has a quick way to do something and a general one, both come to the same."""

from __future__ import annotations

import asyncio
import copy
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from dags import Watched, World, build, shapes
from hypothesis import given

from sagaz_core import FaultPlan, Saga
from sagaz_core.engine.execution import Execution
from sagaz_core.engine.journal import Journal, LateEvents
from sagaz_core.engine.run import RunOptions, Served, run_saga
from sagaz_core.events import SagaCompleted, StepFailed, StepStarted
from sagaz_core.faults.inject import Injector
from sagaz_core.state import SagaState
from sagaz_core.virtual_time import VirtualRunner, clock_of_loop

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Passing:
    """An interceptor that notes what it is given, and lets it pass."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def intercept(self, call: Any, proceed: Any) -> Any:
        before = (call.saga_id, call.step, call.kind, call.attempt, dict(call.context), call.result)
        result = await proceed()
        self.seen.append((*before, call.renew_time is None, result))
        return result


def ran(shape: Any, interceptors: Any = (), **options: Any) -> tuple[Any, ...]:
    """Run a saga of this shape; return what happened outside, the events, and how it ended."""
    world = World()
    watched = Watched(build(shape, world))

    async def main() -> None:
        await watched.run({"start": 1}, clock=clock_of_loop(), interceptors=interceptors, **options)

    with VirtualRunner(start=AT) as runner:
        runner.run(main())
    assert watched.journal is not None
    return world.log, world.times, watched.result.events, watched.journal.state.to_data()


def chained(shape: Any) -> Any:
    """Return the steps of the shape, each after the one before it."""
    names = [None, *(step.name for step in shape)]
    return [replace(step, needs=(names[place],) if names[place] else ()) for place, step in enumerate(shape)]


@given(shapes())
def test_a_chain_that_is_run_step_by_step_ends_as_the_dag_that_it_is(shape: Any) -> None:
    chain = chained(shape)
    with pytest.MonkeyPatch.context() as patch:
        quick = ran(chain)
        patch.setattr(Execution, "_one_at_a_time", lambda self: ())
        assert ran(chain) == quick


@given(shapes())
def test_a_call_through_one_interceptor_is_that_through_several(shape: Any) -> None:
    alone, first, second = Passing(), Passing(), Passing()
    assert ran(shape, (alone,)) == ran(shape, (first, second))
    assert alone.seen == first.seen == second.seen


@given(shapes())
def test_a_plan_without_a_fault_changes_nothing(shape: Any) -> None:
    assert ran(shape, (Injector(FaultPlan()),)) == ran(shape, (Passing(),))


@given(shapes())
def test_events_that_are_made_late_are_those_that_an_observer_was_shown(shape: Any) -> None:
    shown: list[Any] = []
    unseen = ran(shape)
    assert ran(shape, observers=(shown.append,)) == unseen
    assert tuple(shown) == unseen[2]
    assert [type(event) for event in shown] == [type(event) for event in unseen[2]]


def chain(log: list[str]) -> Saga[Any]:
    saga: Saga[Any] = Saga("chain")
    for name in "abc":

        async def act(ctx: Any, *, name: str = name) -> dict[str, str]:
            log.append(f"{name} begins")
            await asyncio.sleep(1)
            log.append(f"{name} ends")
            return {name: name}

        saga.add_step(name, act)
    return saga


def test_a_result_has_its_events_after_it_was_copied_or_pickled_before_or_behind_the_first_look() -> None:
    with VirtualRunner(start=AT) as runner:
        result = runner.run(run_saga(chain([]), {}, saga_id="S", options=RunOptions(clock=lambda: AT)))
    unseen = [copy.copy(result), pickle.loads(pickle.dumps(result)), replace(copy.copy(result), saga_id="T")]
    events = result.events
    assert [type(event).__name__ for event in events][-2:] == ["StepSucceeded", "SagaCompleted"]
    for other in (*unseen, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other.events == events
    assert unseen[1] == result != unseen[2]


@pytest.mark.parametrize("quick", [True, False])
def test_a_step_that_was_served_is_not_run_though_one_before_it_is(quick: bool, monkeypatch: Any) -> None:
    log: list[str] = []
    if not quick:
        monkeypatch.setattr(Execution, "_one_at_a_time", lambda self: ())
    with VirtualRunner(start=AT) as runner:
        result = runner.run(run_saga(chain(log), {}, served=[Served("b", None)]))
    assert sorted(log) == ["a begins", "a ends", "c begins", "c ends"]
    assert result.success


@pytest.mark.parametrize(
    ("kind", "fields"), [(StepStarted, ("a",)), (StepFailed, ("a", 1, None)), (SagaCompleted, ("a",))]
)
def test_an_event_is_not_noted_without_all_of_its_fields(kind: Any, fields: tuple[Any, ...]) -> None:
    journal = Journal(SagaState(), lambda: AT)
    with pytest.raises(ValueError, match="to unpack"):
        journal.emit(kind, *fields)
    assert not journal.events


def test_late_events_are_a_sequence_that_grows_with_the_log() -> None:
    journal = Journal(SagaState(), lambda: AT)
    events = LateEvents(journal.log)
    assert len(events) == 0
    journal.emit(StepStarted, "a", 1)
    assert list(events) == [StepStarted(0, AT, "a", 1)] == journal.events
    journal.emit(SagaCompleted)
    assert events[-1] == SagaCompleted(1, AT)
    assert events[:1] == [StepStarted(0, AT, "a", 1)]
    assert len(events) == 2
