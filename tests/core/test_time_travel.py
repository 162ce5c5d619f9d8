"""What a saga was, at any moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagaz_core import ReplayConfig, Saga, SagaStatus, SagaTimeTravel
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import NaiveTimeError, UnknownSagaError, UsageError
from sagaz_core.state import SagaState
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import run

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


async def fails(ctx: Any) -> None:
    raise OSError("down")


def recorded(**config: Any) -> tuple[InMemorySnapshotStorage, Any]:
    """A saga that is rolled back, with a second between its events."""
    store, ticks = InMemorySnapshotStorage(), iter(range(1000))
    saga: Saga[Any] = (
        Saga("order", snapshot_storage=store, replay_config=ReplayConfig(**config))
        .add_step("a", lambda ctx: {"a": 1, "x": 1}, lambda ctx: "undid a")
        .add_step("b", lambda ctx: ctx.pop("x") and None, lambda ctx: None)
        .add_step("c", fails)
    )
    options = RunOptions(clock=lambda: START + next(ticks) * SECOND)
    return store, run(run_saga(saga, {"x": 0}, saga_id="S", options=options))


@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step", "on_failure", "on_completion", "manual"])
@pytest.mark.parametrize("limit", [None, 1, 3])
def test_the_answer_is_exact_at_and_between_the_events(strategy: Any, limit: Any) -> None:
    store, result = recorded(snapshot_strategy=strategy, max_snapshots_per_saga=limit)
    travel = SagaTimeTravel("S", store)
    state = SagaState()
    for event in result.events:
        before = travel.get_state_at(event.at - timedelta(microseconds=1))
        found = run(before)
        assert (found.seq, found.status, found.context) == (state.seq, state.status, state.context)
        state.apply(event)
        for later in (timedelta(), timedelta(microseconds=1), SECOND / 2):
            found = run(travel.get_state_at(event.at + later))
            assert (found.seq, found.status, found.at) == (event.seq, state.status, event.at)
            assert (found.context, found.results) == (state.context, state.results)
            assert (found.completed_steps, found.compensated_steps) == (tuple(state.results), tuple(state.undone))
            assert (found.current_step, found.error, found.stuck) == (state.current_step, state.error, state.stuck)


@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step"])
def test_without_a_journal_the_newest_snapshot_answers(strategy: Any) -> None:
    store, result = recorded(snapshot_strategy=strategy, journal=False)
    page = run(store.list_snapshots("S"))
    for event in result.events:
        found = run(SagaTimeTravel("S", store).get_state_at(event.at))
        expected = max((s.seq for s in page.items if s.created_at <= event.at), default=-1)
        assert found.seq == expected


def test_before_the_first_event_it_had_not_started() -> None:
    store, _ = recorded()
    found = run(SagaTimeTravel("S", store).get_state_at("1999-01-01T00:00:00Z"))
    assert (found.status, found.started, found.context, found.saga_name) == (SagaStatus.PENDING, False, {}, "order")
    assert run(SagaTimeTravel("S", store).get_context_at("1999-01-01T00:00:00Z", "x")) is None


def test_one_key_can_be_asked_for() -> None:
    store, result = recorded()
    travel = SagaTimeTravel("S", store)
    values = [run(travel.get_context_at(event.at, "x")) for event in result.events]
    assert values == [0, 0, 1, 1, None, None, None, None, 1, 1, 0, 0]
    assert run(travel.get_context_at(result.events[2].at)) == {"a": 1, "x": 1}


@pytest.mark.parametrize("wrong", [START.replace(tzinfo=None), "2026-01-01T00:00:00"])
def test_a_time_without_a_zone_is_refused(wrong: Any) -> None:
    store, _ = recorded()
    with pytest.raises(NaiveTimeError, match="write 2026-01-01T00:00:00Z"):
        run(SagaTimeTravel("S", store).get_state_at(wrong))
    with pytest.raises(NaiveTimeError):
        run(SagaTimeTravel("S", store).list_state_changes(after=wrong))


@pytest.mark.parametrize(
    "wrong", ["yesterday", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", START.date(), 1767225600, None]
)
def test_what_is_no_time_is_refused(wrong: Any) -> None:
    store, _ = recorded()
    with pytest.raises(UsageError):
        run(SagaTimeTravel("S", store).get_state_at(wrong))


def test_an_unknown_saga_names_what_there_is() -> None:
    store, _ = recorded()
    for question in (SagaTimeTravel("T", store).get_state_at(START), SagaTimeTravel("T", store).list_state_changes()):
        with pytest.raises(UnknownSagaError, match=r"no saga 'T'.*'S'"):
            run(question)


def test_changes_are_listed_page_by_page() -> None:
    store, result = recorded()
    travel = SagaTimeTravel("S", store)
    whole = run(travel.list_state_changes()).items
    assert [(change.seq, change.kind) for change in whole] == [(e.seq, type(e).__name__) for e in result.events]
    for size in range(1, len(whole) + 2):
        found: list[Any] = []
        cursor = None
        while True:
            page = run(travel.list_state_changes(limit=size, cursor=cursor))
            assert len(page.items) <= size
            found += page.items
            cursor = page.cursor
            if cursor is None:
                break
        assert found == list(whole)


def test_a_change_says_which_keys_it_changed() -> None:
    store, _ = recorded()
    changes = {(c.kind, c.step): c for c in run(SagaTimeTravel("S", store).list_state_changes()).items}
    assert changes["SagaStarted", None].changed_keys == ("x",)
    assert changes["StepSucceeded", "a"].changed_keys == ("x", "a")
    assert changes["StepSucceeded", "b"].changed_keys == ("x",)
    assert changes["StepFailed", "c"].detail == "OSError: down"
    assert changes["CompensationSucceeded", "b"].changed_keys == ("x",)
    assert changes["CompensationSucceeded", "a"].changed_keys == ("x", "a")
    assert changes["SagaRolledBack", None].status is SagaStatus.ROLLED_BACK


def test_changes_are_those_between_two_moments() -> None:
    store, result = recorded()
    at = [event.at for event in result.events]
    page = run(SagaTimeTravel("S", store).list_state_changes(after=at[1], before=at[4]))
    assert [change.seq for change in page.items] == [2, 3]
    assert page.cursor is None


@pytest.mark.parametrize(("limit", "cursor"), [(0, None), (-1, None), (1, "x"), (1, "-1"), (1, "9" * 5000)])
def test_a_page_that_cannot_be_is_refused(limit: int, cursor: Any) -> None:
    store, _ = recorded()
    with pytest.raises(UsageError):
        run(SagaTimeTravel("S", store).list_state_changes(limit=limit, cursor=cursor))
