"""The state is the fold of the events, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from dags import Watched, World, build, shapes
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core.events import (
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Delta,
    ErrorInfo,
    SagaCompleted,
    SagaResumed,
    SagaRolledBack,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.codec import decode, encode
from sagaz_core.storage.records import pack_event, unpack_event
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    import random

AT = datetime(2026, 1, 1, tzinfo=UTC)
ERROR = ErrorInfo("builtins:OSError", "no")


def fold(events: Any, state: SagaState | None = None) -> SagaState:
    state = state or SagaState()
    for event in events:
        state.apply(event)
    return state


def events_of(shape: Any) -> list[Any]:
    watched = Watched(build(shape, World()))
    run(watched.run({"start": 1}))
    assert watched.journal is not None
    return watched.journal.events


@given(shapes())
def test_the_fold_of_the_events_is_the_state_also_through_bytes_and_from_any_snapshot(shape: Any) -> None:
    watched = Watched(build(shape, World()))
    result = run(watched.run({"start": 1}))
    assert watched.journal is not None
    state, events = watched.journal.state, watched.journal.events
    again = fold(unpack_event(pack_event("S", event)) for event in events)
    assert again.to_data() == state.to_data() == fold(events).to_data()
    for cut in range(len(events) + 1):
        snapshot = SagaState.from_data(decode(encode(fold(events[:cut]).to_data())))
        assert fold(events[cut:], snapshot).to_data() == state.to_data()
    if result.status is SagaStatus.ROLLED_BACK:
        assert result.context == {"start": 1}


def test_events_of_a_release_that_named_no_run_are_read() -> None:
    started = SagaStarted(0, AT, "S", "s", "1", "f", {"k": 0})
    for event in (started, SagaResumed(1, AT)):
        stored = pack_event("S", event, seal=False)
        fields = decode(stored.data)
        assert fields.pop() == ""
        assert unpack_event(stored._replace(data=encode(fields))) == event


@given(shapes(), st.data())
def test_a_fork_goes_its_own_way(shape: Any, data: st.DataObject) -> None:
    events = events_of(shape)
    cut = data.draw(st.integers(0, len(events)))
    state = fold(events[:cut])
    before = encode(state.to_data())
    fork = state.fork()
    fold(events[cut:], fork)
    assert encode(state.to_data()) == before
    assert fork.to_data() == fold(events).to_data()


keys = st.sampled_from("abcd")
deltas = st.builds(Delta, st.dictionaries(keys, st.integers(), max_size=3), st.just(()))


@given(st.dictionaries(keys, st.integers()), st.lists(deltas, max_size=6), st.randoms(use_true_random=False))
def test_undoing_in_any_order_ends_with_the_initial_context(
    initial: dict[str, int], changes: list[Delta], order: random.Random
) -> None:
    events: list[Any] = [SagaStarted(0, AT, "S", "s", "1", "f", initial)]
    for index, delta in enumerate(changes):
        gone = tuple(key for key in "ab" if key not in delta.set)[: index % 3]
        events.append(StepSucceeded(len(events), AT, f"s{index}", 1, None, Delta(delta.set, gone)))
    names = [f"s{index}" for index in range(len(changes))]
    order.shuffle(names)
    for name in names:
        events.append(CompensationSucceeded(len(events), AT, name, 1))
    state = fold(events)
    assert state.context == initial
    assert state.compensated == names
    assert state.completed == []


def test_undoing_a_middle_step_leaves_what_came_after_it() -> None:
    state = fold(
        [
            SagaStarted(0, AT, "S", "s", "1", "f", {"k": 0}),
            StepSucceeded(1, AT, "a", 1, None, Delta({"k": 1, "a": 1})),
            StepSucceeded(2, AT, "b", 1, None, Delta({"k": 2}, ("a",))),
            CompensationSucceeded(3, AT, "a", 1),
        ]
    )
    assert state.context == {"k": 2}
    state.apply(CompensationSucceeded(4, AT, "b", 1))
    assert state.context == {"k": 0}


def test_an_event_that_is_not_the_next_is_refused() -> None:
    state = SagaState()
    with pytest.raises(ValueError, match=r"event 3 .SagaCompleted. cannot follow event -1"):
        state.apply(SagaCompleted(3, AT))


def test_a_compensation_that_succeeds_when_tried_once_more_is_stuck_no_longer() -> None:
    state = fold(
        [
            SagaStarted(0, AT, "S", "s", "1", "f", {}),
            StepSucceeded(1, AT, "a", 1),
            CompensationStarted(2, AT, "a", 1),
            CompensationFailed(3, AT, "a", 1, ERROR),
        ]
    )
    assert state.stuck == ("a",)
    fold([CompensationSucceeded(4, AT, "a", 2), SagaRolledBack(5, AT)], state)
    assert (state.stuck, state.status) == ((), SagaStatus.ROLLED_BACK)


def test_what_was_running_in_a_process_that_died_is_in_doubt() -> None:
    state = fold([SagaStarted(0, AT, "S", "s", "1", "f", {}), StepStarted(1, AT, "a", 1), SagaResumed(2, AT)])
    assert (state.running, list(state.ambiguous)) == ({}, ["a"])
    fold([StepFailed(3, AT, "a", 2, ERROR, False, True)], state)
    assert list(state.ambiguous) == ["a"], "a later attempt that was refused says nothing of the one before"


def test_data_of_another_shape_is_refused() -> None:
    data = decode(encode(SagaState().to_data()))
    damaged = {"context": [], "seq": "1", "stuck": [1], "status": "odd", "layers": {"a": 1}, "error": [1, 2]}
    for name, wrong in damaged.items():
        with pytest.raises((KeyError, TypeError, ValueError)):
            SagaState.from_data({**data, name: wrong})
