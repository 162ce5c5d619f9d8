"""What is captured of a run, when, and what becomes of the run when it cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core import ReplayConfig, Saga, SagaStatus
from sagaz_core.engine import encoded
from sagaz_core.engine.load import load_state
from sagaz_core.engine.run import RunOptions, Served, run_saga
from sagaz_core.errors import (
    CannotStoreError,
    ContextConflictError,
    DuplicateSagaError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.events import Delta
from sagaz_core.storage import frames
from sagaz_core.storage.codec import encode, part
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.records import unpack_event, unpack_state
from sagaz_core.storage.snapshot_ids import named, snapshot_name
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from sagaz_core.storage.base import SagaSnapshot


async def fails(ctx: Any) -> None:
    raise OSError("down")


def saga(store: Any, *, failing: bool = False, **config: Any) -> Saga[Any]:
    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(**config))
    made.add_step("a", lambda ctx: {"a": 1}, lambda ctx: "undid a")
    made.add_step("b", lambda ctx: {"b": [2]}, lambda ctx: "undid b")
    return made.add_step("c", fails if failing else lambda ctx: {"c": 3})


async def all_of(store: Any, saga_id: str = "S") -> tuple[list[Any], list[SagaSnapshot]]:
    events = [unpack_event(event) async for event in store.read_events(saga_id)]
    found: list[SagaSnapshot] = []
    cursor = None
    while True:
        page = await store.list_snapshots(saga_id, limit=3, cursor=cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return events, found


def captured(*, failing: bool = False, context: Any = None, **config: Any) -> tuple[Any, list[Any], list[SagaSnapshot]]:
    store = InMemorySnapshotStorage()

    async def main() -> Any:
        result = await saga(store, failing=failing, **config).run(context or {"x": 0}, saga_id="S")
        return result, *await all_of(store)

    return run(main())


def phases(snapshots: Any) -> list[tuple[str, str]]:
    return [(snapshot.phase, snapshot.step_name) for snapshot in snapshots]


BEFORE = [("before", "a"), ("before", "b"), ("before", "c")]
UNDONE = [("undone", "b"), ("undone", "a")]


@pytest.mark.parametrize(
    ("strategy", "failing", "expected"),
    [
        ("before_each_step", False, [*BEFORE, ("final", "")]),
        ("before_each_step", True, [*BEFORE, *UNDONE, ("final", "")]),
        ("after_each_step", False, [("after", "a"), ("after", "b"), ("after", "c"), ("final", "")]),
        ("after_each_step", True, [("after", "a"), ("after", "b"), *UNDONE, ("final", "")]),
        ("on_failure", False, [("final", "")]),
        ("on_failure", True, [("failed", "c"), *UNDONE, ("final", "")]),
        ("on_completion", False, [("final", "")]),
        ("on_completion", True, [*UNDONE, ("final", "")]),
        ("manual", False, []),
        ("manual", True, []),
    ],
)
@pytest.mark.parametrize("journal", [True, False])
def test_each_strategy_takes_its_snapshots(strategy: Any, failing: bool, expected: Any, journal: bool) -> None:
    result, events, snapshots = captured(failing=failing, snapshot_strategy=strategy, journal=journal)
    if failing and not journal and strategy not in ("on_failure", "manual"):
        expected = [*expected[: -1 - len(UNDONE)], ("failed", "c"), *UNDONE, ("final", "")]
    assert phases(snapshots) == expected
    assert events == (list(result.events) if journal else [])
    states = [unpack_state(snapshot) for snapshot in snapshots]
    assert [state.seq for state in states] == [snapshot.seq for snapshot in snapshots] == sorted(s.seq for s in states)
    for snapshot, state in zip(snapshots, states, strict=True):
        assert snapshot.step_index == len(state.results)
        assert snapshot.status == state.status.value
        folded = type(state)()
        for event in result.events[: state.seq + 1]:
            folded.apply(event)
        assert state.to_data() == folded.to_data()
    if states:
        assert states[-1].status is result.status
        assert states[-1].context == result.context
        assert states[-1].results == result.results
        assert states[-1].undone == result.compensation_results


def test_a_saga_that_gives_up_past_its_pivot_has_its_failure_captured() -> None:
    store = InMemorySnapshotStorage()
    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(snapshot_strategy="on_failure"))
    made.add_step("a", lambda ctx: None, pivot=True).add_step("b", fails)

    async def main() -> Any:
        await made.run(saga_id="S")
        return await all_of(store)

    _, snapshots = run(main())
    assert phases(snapshots) == [("failed", "b"), ("final", "")]


@pytest.mark.parametrize("backwards", [True, False])
def test_order_is_by_number_whatever_the_clock_does(backwards: bool) -> None:
    store = InMemorySnapshotStorage()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ticks = iter(range(1000))

    async def main() -> Any:
        await run_saga(
            saga(store),
            {},
            saga_id="S",
            options=RunOptions(clock=lambda: now - timedelta(days=next(ticks)) if backwards else now),
        )
        return await all_of(store)

    events, snapshots = run(main())
    assert [event.seq for event in events] == list(range(len(events)))
    assert phases(snapshots) == [*BEFORE, ("final", "")]


def test_a_frozen_clock_is_captured_as_it_is() -> None:
    with freeze_time("2020-02-02 02:02:02"):
        _, events, snapshots = captured()
    assert {event.at for event in events} == {datetime(2020, 2, 2, 2, 2, 2, tzinfo=UTC)}
    assert type(snapshots[0].created_at) is datetime


# ---- isolation


def test_what_is_changed_later_never_shows_in_an_earlier_snapshot() -> None:
    store = InMemorySnapshotStorage()
    given: dict[str, Any] = {"items": [1], "deep": {"list": [{"n": 0}]}}

    def a(ctx: Any) -> Any:
        ctx["items"].append("a")
        ctx["deep"]["list"][0]["n"] += 1
        return {"mine": ["a"]}

    def b(ctx: Any) -> None:
        ctx["items"].append("b")
        ctx["mine"].append("b")

    contexts: list[Any] = []
    made: Saga[Any] = (
        Saga("s", snapshot_storage=store)
        .add_step("a", a, lambda ctx: contexts.append(repr(dict(ctx))))
        .add_step("b", b, lambda ctx: contexts.append(repr(dict(ctx))))
        .add_step("c", fails)
    )

    async def main() -> Any:
        result = await made.run(given, saga_id="S")
        return result, *await all_of(store)

    result, events, snapshots = run(main())
    seen = {(s.phase, s.step_name): unpack_state(s).context for s in snapshots}
    begin = {"items": [1], "deep": {"list": [{"n": 0}]}}
    after_a = {"items": [1, "a"], "deep": {"list": [{"n": 1}]}, "mine": ["a"]}
    after_b = {**after_a, "items": [1, "a", "b"], "mine": ["a", "b"]}
    assert seen["before", "a"] == begin
    assert seen["before", "b"] == after_a
    assert seen["before", "c"] == after_b
    assert seen["undone", "b"] == after_a
    assert seen["undone", "a"] == begin == seen["final", ""]
    assert contexts == [repr(after_b), repr(after_a)]
    assert result.context == begin
    assert events[0].context == begin


def test_an_attempt_that_fails_leaves_nothing_that_it_changed_in_place() -> None:
    seen: list[Any] = []

    def a(ctx: Any) -> None:
        seen.append(list(ctx["items"]))
        ctx["items"].append("junk")
        raise OSError

    made: Saga[Any] = Saga("s", snapshot_storage=InMemorySnapshotStorage()).add_step("a", a, retries=2)
    result = run(made.run({"items": []}))
    assert seen == [[], [], []]
    assert result.context == {"items": []}


def test_what_a_served_step_wrote_over_is_captured_as_written() -> None:
    store = InMemorySnapshotStorage()
    seen: list[Any] = []
    made: Saga[Any] = Saga("s", snapshot_storage=store)
    made.add_step("a", lambda ctx: None).add_step("b", lambda ctx: seen.append(dict(ctx)))
    written = {"items": [1, 2], "n": 2}

    async def main() -> Any:
        served = [Served("a", written, Delta(written))]
        await run_saga(made, {"items": [1], "n": 1}, saga_id="S", served=served)
        return await all_of(store)

    events, snapshots = run(main())
    assert seen == [written]
    assert unpack_state(snapshots[-1]).context == written
    assert events[1].delta == Delta(written)


def fits(value: Any) -> bool:
    try:
        return bool(encode(value))
    except CannotStoreError:
        return False


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {1: v}, lambda v: (v,), lambda v: {"k": v}])
def test_as_deep_as_a_value_can_be_it_can_be_read_from_a_state(wrap: Any) -> None:
    value: Any = 1
    while fits({"a": wrap(value)}):
        value = wrap(value)
    store = InMemorySnapshotStorage()
    made: Saga[Any] = Saga("s", snapshot_storage=store)
    made.add_step("a", lambda ctx: {"a": value}, lambda ctx: {"undone": value}).add_step("b", fails)

    async def main() -> Any:
        await made.run({"x": value}, saga_id="S")
        return await all_of(store)

    events, snapshots = run(main())
    assert events[0].context == {"x": value}
    assert unpack_state(snapshots[1]).layers["a"].set == unpack_state(snapshots[1]).results["a"] == {"a": value}
    assert unpack_state(snapshots[-1]).undone == {"a": {"undone": value}}


def test_beside_a_sibling_that_ended_a_change_in_place_is_still_seen() -> None:
    store = InMemorySnapshotStorage()

    async def quick(ctx: Any) -> Any:
        return {"quick": 1}

    async def slow(ctx: Any) -> None:
        await asyncio.sleep(1)
        ctx["items"].append(1)

    made: Saga[Any] = (
        Saga("s", snapshot_storage=store)
        .add_step("quick", quick, lambda ctx: None, depends_on=[])
        .add_step("slow", slow, lambda ctx: None, depends_on=[])
        .add_step("last", fails, depends_on=["quick", "slow"])
    )

    async def main() -> Any:
        return await made.run({"items": []}, saga_id="S"), await all_of(store)

    result, (_, snapshots) = run(main())
    contexts = {(s.phase, s.step_name): unpack_state(s).context for s in snapshots}
    assert contexts["before", "last"] == {"items": [1], "quick": 1}
    assert result.context == {"items": []} == contexts["final", ""]


def test_a_snapshot_that_was_fetched_is_not_the_stores() -> None:
    _, _, snapshots = captured()
    first = unpack_state(snapshots[-1])
    first.context["b"].append("mine")
    first.results.clear()
    assert unpack_state(snapshots[-1]).context["b"] == [2]


# ---- a store that fails


class Failing(InMemorySnapshotStorage):
    """Fails the writes of these numbers, at once or by never answering."""

    def __init__(self, *numbers: int, hangs: bool = False, error: type[Exception] = OSError) -> None:
        super().__init__()
        self.numbers, self.hangs, self.error, self.count = numbers, hangs, error, 0

    async def write(self, batch: Any) -> None:
        self.count += 1
        if self.count in self.numbers:
            if self.hangs:
                await asyncio.sleep(1e9)
            raise self.error(f"write {self.count} failed")
        await super().write(batch)


def writes(failing: bool) -> int:
    store = Failing()
    run(saga(store, failing=failing).run())
    return store.count


def test_a_chain_is_written_once_a_step() -> None:
    assert writes(failing=False) == 4
    assert writes(failing=True) == 3 + 1 + 2 * 2 + 1


@pytest.mark.parametrize("waiting", ["", "b", "d"])
def test_steps_beside_each_other_that_never_wait_are_written_once_each(waiting: str) -> None:
    store = Failing()
    ended: list[str] = []
    unwritten: list[tuple[str, list[str]]] = []

    def step(name: str) -> Any:
        async def act(ctx: Any) -> None:
            written = [event.step async for event in store.read_events("S") if event.kind == "StepSucceeded"]
            unwritten.append((name, [one for one in ended if one not in written]))
            if name == waiting:
                await asyncio.sleep(1)
            ended.append(name)

        return act

    made: Saga[Any] = Saga("wide", snapshot_storage=store)
    for name in "abcde":
        made.add_step(name, step(name), depends_on=["a"] if name != "a" else [])
    made.add_step("f", step("f"), depends_on=list("bcde"))
    assert run(made.run(saga_id="S")).success
    assert unwritten == [(name, []) for name in "abcdef"], "what is done is durable before anything else is done"
    # A start each and the end; those that have a task of their own write theirs when it ends, but for the last of all.
    assert store.count == 7 + {"": 0, "b": 3, "d": 1}[waiting]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("mode", ["raise", "warn"])
def test_a_write_that_fails_is_made_up_for_and_told(
    number: int, hangs: bool, failing: bool, mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if number > writes(failing):
        return
    store = Failing(number, hangs=hangs)
    undone: list[str] = []
    journals: list[Any] = []
    made = saga(store, failing=failing, on_capture_error=mode, capture_timeout=2)
    made.add_step("d", lambda ctx: None, lambda ctx: undone.append("d"))

    async def main() -> Any:
        options = RunOptions(on_journal=journals.append)
        error = None
        try:
            await run_saga(made, {"x": 0}, saga_id="S", options=options)
        except (OSError, StoreUnavailableError) as caught:
            error = caught
        return error, await all_of(store)

    error, (events, snapshots) = run(main())
    state = journals[0].state
    assert state.status.ended
    assert (error is not None) == (mode == "raise")
    if mode == "warn":
        assert state.status is (SagaStatus.ROLLED_BACK if failing else SagaStatus.COMPLETED)
        assert "goes on without capture" in caplog.text
    elif state.status is SagaStatus.ROLLED_BACK:
        assert not [name for name in state.results if name != "c"], "what was done and can be undone is undone"
    if error is not None and hangs:
        assert "did not answer within 2 s" in str(error)
    last_failed = number == store.count
    if not last_failed:
        assert events == journals[0].events
        assert unpack_state(snapshots[-1]).to_data() == state.to_data()


def test_a_store_that_hangs_is_not_asked_at_every_step() -> None:
    store = Failing(*range(1, 100), hangs=True)
    made: Saga[Any] = Saga(
        "s", snapshot_storage=store, replay_config=ReplayConfig(on_capture_error="warn", capture_timeout=30)
    )
    for index in range(20):
        made.add_step(f"s{index}", lambda ctx: None)

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        assert (await made.run()).success
        return asyncio.get_running_loop().time() - began

    assert run(main()) == 60  # the first write, and the last


def acting(store: Any, log: list[str], steps: str = "abc", **options: Any) -> Saga[Any]:
    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(capture_timeout=2, **options))

    def step(name: str) -> None:
        made.add_step(name, lambda ctx: log.append(name), lambda ctx: log.append(f"-{name}"))

    for name in steps:
        step(name)
    return made


@pytest.mark.parametrize(
    ("durability", "hangs", "error"),
    [
        ("sync", False, OSError),
        ("sync", True, OSError),
        ("group", False, OSError),
        ("group", True, OSError),
        ("sync", False, RuntimeError),
    ],
)
def test_nothing_is_undone_that_a_store_which_is_gone_would_not_know_of(
    durability: Any, hangs: bool, error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store, log = Failing(*range(3, 100), hangs=hangs, error=error), list[str]()
    made = acting(store, log, durability=durability)

    async def main() -> Any:
        with pytest.raises((error, StoreUnavailableError)):
            await made.run(saga_id="S")
        assert log == ["a", "b"]
        store.numbers = ()
        return await made.resume("S")

    result = run(main())
    assert "saga S is left as it is, to be resumed: that b, a would be undone cannot be recorded" in caplog.text
    assert result.success
    assert log in (["a", "b", "c"], ["a", "b", "b", "c"])  # done once, or again where its end was not written


@pytest.mark.parametrize("failure", ["store", "conflict"])
def test_a_step_that_runs_when_the_run_itself_fails_is_awaited_and_undone(failure: str) -> None:
    log: list[str] = []

    async def slow(ctx: Any) -> Any:
        log.append("slow")
        await asyncio.sleep(2)
        log.append("slow is done")
        return {"mine": 1}

    async def quick(ctx: Any) -> Any:
        await asyncio.sleep(1)
        return {"x": 1}

    async def other(ctx: Any) -> Any:
        await asyncio.sleep(1)
        return {"x": 2} if failure == "conflict" else None

    store = Failing(4 if failure == "store" else 0)  # when what has taken a second is done
    made = acting(store, log, steps="")
    made.add_step("slow", slow, lambda ctx: log.append("-slow"), depends_on=[])
    made.add_step("quick", quick, lambda ctx: log.append("-quick"), depends_on=[])
    made.add_step("other", other, lambda ctx: log.append("-other"), depends_on=[])
    made.add_step("behind", quick, depends_on=["quick"])

    async def main() -> Any:
        with pytest.raises((OSError, ContextConflictError)):
            await made.run(saga_id="S")
        return await load_state(store, "S")

    state = run(main())
    assert state.status is SagaStatus.ROLLED_BACK
    assert log[:2] == ["slow", "slow is done"]
    assert sorted(log[2:]) == ["-other", "-quick", "-slow"]


@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step"])
@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("journal", [True, False])
def test_a_rollback_whose_store_went_away_is_gone_on_with_by_who_resumes_it(
    journal: bool, durability: Any, strategy: Any
) -> None:
    log: list[str] = []
    store = Failing()

    def no(ctx: Any) -> None:
        raise ValueError("no")

    options = {"journal": journal, "snapshot_strategy": strategy}
    made = acting(store, log, durability=durability, **options).add_step("d", no)

    async def main() -> Any:
        await made.run(saga_id="whole")
        of_whole, log[:] = log.copy(), []
        for gone in range(1 if journal or strategy == "before_each_step" else 2, store.count):
            store.count, store.numbers = 0, tuple(range(1 + gone, 100))
            with pytest.raises((OSError, StoreUnavailableError)):
                await made.run(saga_id=f"S{gone}")
            store.numbers = ()
            assert (await made.resume(f"S{gone}")).status is SagaStatus.ROLLED_BACK
            # Each was done, then undone; what was under way when the store went may be so twice.
            assert [name for place, name in enumerate(log) if name not in log[:place]] == of_whole
            assert sum(log.count(name) - 1 for name in of_whole) <= 1
            log.clear()

    run(main())


@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step", "on_failure"])
@pytest.mark.parametrize("durability", ["sync", "group"])
def test_what_was_undone_without_a_journal_is_not_taken_for_done(durability: Any, strategy: Any) -> None:
    """A step that failed may succeed when it is run again, as who resumes the saga does if it knows of no failure."""
    log, ends = list[str](), set[SagaStatus]()

    def once(ctx: Any) -> None:
        log.append("d")
        if log.count("d") == 1:
            raise ValueError("no")

    async def main() -> Any:
        for gone in range(1, 9):
            store = Failing(*range(1 + gone, 100))
            made = acting(store, log, durability=durability, journal=False, snapshot_strategy=strategy)
            made.add_step("d", once)
            with contextlib.suppress(OSError, StoreUnavailableError):
                await made.run(saga_id="S")
            store.numbers = ()
            if not await store.count_snapshots("S"):
                log.clear()
                continue  # nothing was captured
            status = (await made.resume("S")).status
            ends.add(status)
            if status is SagaStatus.COMPLETED:
                assert not [name for name in log if name.startswith("-")]
            else:
                assert list(dict.fromkeys(log))[-3:] == ["-c", "-b", "-a"]
            log.clear()
        assert SagaStatus.ROLLED_BACK in ends

    run(main())


def test_a_store_that_is_gone_for_good_does_not_keep_a_saga_from_being_undone_that_need_not_be_captured() -> None:
    log: list[str] = []
    assert not run(acting(Failing(*range(3, 100)), log, on_capture_error="warn").add_step("d", fails).run()).success
    assert log == ["a", "b", "c", "-c", "-b", "-a"]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_that_a_compensation_starts_is_told_the_store_as_often_as_the_compensation_may_be_tried(times: int) -> None:
    log: list[str] = []
    store = Failing(*range(6, 6 + times))  # three steps, the one that fails, that it failed
    with pytest.raises(OSError, match="write 6 failed"):
        run(acting(store, log).add_step("d", fails).run())
    assert log == ["a", "b", "c"] + (["-c", "-b", "-a"] if times < 3 else [])


def test_two_runs_under_one_id_find_each_other_out() -> None:
    store = InMemorySnapshotStorage()
    run(saga(store).run({"x": 1}, saga_id="S"))
    before = run(all_of(store))
    with pytest.raises(DuplicateSagaError, match="'S' is stored already"):
        run(saga(store).run({"x": 2}, saga_id="S"))
    assert run(all_of(store)) == before


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_two_runs_under_one_id_that_start_at_the_same_moment_find_each_other_out(durability: Any) -> None:
    store, log = InMemorySnapshotStorage(), list[str]()

    async def main() -> list[Any]:
        made = [acting(store, log, durability=durability) for _ in range(2)]
        return await asyncio.gather(*(one.run({"x": 1}, saga_id="S") for one in made), return_exceptions=True)

    with freeze_time("2020-02-02 02:02:02"):
        ends = run(main())
    assert sorted(type(end).__name__ for end in ends) == ["DuplicateSagaError", "SagaResult"]
    assert log == ["a", "b", "c"]


def test_a_snapshot_is_named_by_its_saga_and_seq_and_further_ones_there_by_their_number() -> None:
    store = InMemorySnapshotStorage()

    async def act(ctx: Any) -> None:
        for number in range(3):
            await Saga.take_snapshot(f"m{number}")

    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(max_snapshots_per_saga=99))
    run(made.add_step("a", act).run(saga_id="order-42"))
    _, found = run(all_of(store, "order-42"))
    names = ["order-42@0", "order-42@1", "order-42@1-000001", "order-42@1-000002", "order-42@3"]
    assert [one.snapshot_id for one in found] == names
    assert [one.step_name for one in found] == ["a", "m0", "m1", "m2", ""]
    assert [named(name) for name in names] == [("order-42", one.seq) for one in found]


@given(st.text(min_size=1), st.integers(0, 2**63 - 1), st.integers(0, 10**6 - 1))
def test_the_name_of_a_snapshot_says_of_which_saga_and_seq_it_is(saga_id: str, seq: int, number: int) -> None:
    name = snapshot_name(saga_id, seq, number)
    assert named(name) == (saga_id, seq)
    assert number == 0 or snapshot_name(saga_id, seq, number - 1) < name


# ---- values that cannot be stored


@contextlib.contextmanager
def unstorable() -> Any:
    with socket.socket() as made:
        yield made


def test_a_bad_initial_context_is_refused_before_anything_is_written_or_run() -> None:
    store = Failing()
    ran: list[int] = []
    with unstorable() as bad:
        made: Saga[Any] = Saga("s", snapshot_storage=store).add_step("a", lambda ctx: ran.append(1))
        with pytest.raises(CannotStoreError, match=r"context\['deep'\]\[0\]"):
            run(made.run({"deep": [bad]}))
    assert (store.count, ran) == (0, [])


def test_a_step_whose_name_cannot_be_stored_is_not_run() -> None:
    store, ran = InMemorySnapshotStorage(), list[str]()
    made: Saga[Any] = Saga("s", snapshot_storage=store)
    made.add_step("a", lambda ctx: None, lambda ctx: ran.append("undid a"))
    made.add_step("\ud800", lambda ctx: ran.append("did it"))
    with pytest.raises(CannotStoreError, match=r"the name '\\ud800' cannot be stored"):
        run(made.run({}, saga_id="S"))
    events, snapshots = run(all_of(store))
    assert ran == ["undid a"]
    assert unpack_state(snapshots[-1]).status is SagaStatus.ROLLED_BACK
    assert events[-1].seq == unpack_state(snapshots[-1]).seq


class Name(StrEnum):
    """Names of steps that have a class of their own."""

    A = "a"


def test_a_step_may_be_named_by_an_enum() -> None:
    store = InMemorySnapshotStorage()
    made: Saga[Any] = Saga("s", snapshot_storage=store)
    made.add_step(Name.A, lambda ctx: {"x": 1}).add_step("b", lambda ctx: None)
    run(made.run({}, saga_id="S"))
    events, snapshots = run(all_of(store))
    assert [type(event.step) for event in events if hasattr(event, "step")] == [str] * 4
    assert list(map(type, unpack_state(snapshots[-1]).results)) == [str, str]


def test_a_result_that_cannot_be_stored_is_named_and_its_step_is_undone_with_it() -> None:
    undone: list[Any] = []
    store = InMemorySnapshotStorage()
    with unstorable() as bad:
        made: Saga[Any] = (
            Saga("s", snapshot_storage=store)
            .add_step("a", lambda ctx: {"a": 1}, lambda ctx, result: undone.append((ctx["a"], result)))
            .add_step("b", lambda ctx: {"id": 7, "conn": bad}, lambda ctx, r: undone.append((ctx["id"], r["conn"])))
            .add_step("c", lambda ctx: undone.append("c"))
        )

        async def main() -> Any:
            with pytest.raises(CannotStoreError, match=r"context\['conn'\]") as caught:
                await made.run({"x": 1}, saga_id="S")
            return caught.value, await all_of(store)

        error, (events, snapshots) = run(main())
        assert undone == [(7, bad), (1, {"a": 1})]
    assert error.path == "context['conn']"
    final = unpack_state(snapshots[-1])
    assert (final.status, final.context) == (SagaStatus.ROLLED_BACK, {"x": 1})
    (stored,) = [e for e in events if type(e).__name__ == "StepSucceeded" and e.step == "b"]
    assert stored.result == {"id": 7}
    assert stored.delta.set == {"id": 7}


def test_a_value_that_cannot_be_stored_is_left_out_with_a_warning_where_that_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = InMemorySnapshotStorage()
    with unstorable() as bad:
        made: Saga[Any] = (
            Saga("s", snapshot_storage=store, replay_config=ReplayConfig(on_capture_error="warn"))
            .add_step("a", lambda ctx: {"conn": bad, "n": ctx["first"] is bad})
            .add_step("b", lambda ctx: {"same": ctx["conn"] is bad})
        )

        async def main() -> Any:
            return await made.run({"x": 1, "first": bad}, saga_id="S"), await all_of(store)

        result, (_, snapshots) = run(main())
        assert result.context == {"x": 1, "first": bad, "conn": bad, "n": True, "same": True}
    assert unpack_state(snapshots[-1]).context == {"x": 1, "n": True, "same": True}
    assert "context['conn']" in caplog.text
    assert "context['first']" in caplog.text


def test_a_compensation_whose_result_cannot_be_stored_has_undone_its_step_all_the_same() -> None:
    store = InMemorySnapshotStorage()
    with unstorable() as bad:
        made: Saga[Any] = (
            Saga("s", snapshot_storage=store).add_step("a", lambda ctx: {"a": 1}, lambda ctx: bad).add_step("b", fails)
        )

        async def main() -> Any:
            with pytest.raises(CannotStoreError, match="result of the compensation of 'a'"):
                await made.run({}, saga_id="S")
            return await all_of(store)

        events, snapshots = run(main())
    assert unpack_state(snapshots[-1]).status is SagaStatus.ROLLED_BACK
    assert [event.seq for event in events] == list(range(len(events)))


# ---- how long, how many


def test_snapshots_say_how_long_they_are_kept() -> None:
    _, _, snapshots = captured(retention_days=2)
    assert all(s.retention_until == s.created_at + timedelta(days=2) for s in snapshots)
    assert all(s.retention_until is None for s in captured()[2])


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("failing", [False, True])
def test_only_the_newest_snapshots_are_kept(limit: int, failing: bool) -> None:
    everything = phases(captured(failing=failing)[2])
    assert phases(captured(failing=failing, max_snapshots_per_saga=limit)[2]) == everything[-limit:]


def test_snapshots_of_one_event_count_one_by_one() -> None:
    store = InMemorySnapshotStorage()

    async def act(ctx: Any) -> None:
        for number in range(5):
            await Saga.take_snapshot(f"m{number}")

    config = ReplayConfig(max_snapshots_per_saga=3, snapshot_strategy="manual")
    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=config)
    made.add_step("a", act).add_step("b", lambda ctx: None).add_step("c", act)

    async def main() -> Any:
        await made.run(saga_id="S")
        return await all_of(store)

    _, snapshots = run(main())
    assert len({snapshot.seq for snapshot in snapshots}) == 1, "those of the last event are never deleted"


# ---- by hand


def test_a_snapshot_can_be_taken_from_inside_a_step_or_a_compensation() -> None:
    store = InMemorySnapshotStorage()

    async def awaited(ctx: Any) -> Any:
        await Saga.take_snapshot("in async")
        assert await store.count_snapshots("S") == 1
        return {"a": 1}

    def inline(ctx: Any) -> None:
        Saga.take_snapshot("in sync")

    def threaded(ctx: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        Saga.take_snapshot("in thread")

    async def undo(ctx: Any) -> None:
        await Saga.take_snapshot("in undo")

    made: Saga[Any] = (
        Saga("s", snapshot_storage=store, replay_config=ReplayConfig(snapshot_strategy="manual"))
        .add_step("a", awaited, undo)
        .add_step("b", inline)
        .add_step("c", threaded, timeout=30)
        .add_step("d", fails)
    )

    async def main() -> Any:
        await made.run(saga_id="S")
        return await all_of(store)

    _, snapshots = run(main())
    assert phases(snapshots) == [("manual", f"in {where}") for where in ("async", "sync", "thread", "undo")]
    assert unpack_state(snapshots[1]).context == {"a": 1}


def test_a_snapshot_outside_of_a_captured_run_is_refused() -> None:
    with pytest.raises(UsageError, match="outside of a captured run"):
        Saga.take_snapshot("x")
    made: Saga[Any] = Saga("s").add_step("a", lambda ctx: Saga.take_snapshot("x"))
    assert isinstance(run(made.run()).exception, UsageError)


# ---- settings


def test_what_cannot_be_done_is_refused_clearly() -> None:
    with pytest.raises(UsageError, match="nothing is there to encrypt them with"):
        run(saga(InMemorySnapshotStorage(), encrypt_fields=("card",)).run())


def test_switched_off_nothing_is_captured() -> None:
    store = Failing()
    run(saga(store, enable_snapshots=False).run())
    assert store.count == 0


@pytest.mark.parametrize("compression", ["zstd", None])
def test_states_are_compressed_unless_that_is_turned_off(compression: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InMemorySnapshotStorage, "in_memory", False)  # as any other store
    big = {"text": "the same again and again " * 4000}
    _, _, snapshots = captured(context=big, compression=compression)
    sizes = [len(snapshot.data) for snapshot in snapshots]
    assert (max(sizes) < 2000) == (compression == "zstd")
    assert [unpack_state(snapshot).initial for snapshot in snapshots] == [big] * len(snapshots)


def test_in_memory_states_are_kept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "blake2b", None)  # no checksum of what cannot be damaged
    big = {"text": "the same again and again " * 4000}
    _, _, snapshots = captured(context=big)
    assert min(len(snapshot.data) for snapshot in snapshots) > len(big["text"])
    assert [snapshot.base_seq for snapshot in snapshots] == [None] * len(snapshots)
    assert [unpack_state(snapshot).initial for snapshot in snapshots] == [big] * len(snapshots)


def test_a_context_is_packed_once_however_often_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []

    def counted(value: Any, at: str = "") -> bytes:
        packed.append(at)
        return part(value, at)

    monkeypatch.setattr(encoded, "part", counted)
    store = InMemorySnapshotStorage()
    made: Saga[Any] = Saga("s", snapshot_storage=store)
    for number in range(10):
        made.add_step(f"s{number}", lambda ctx: None)
    run(made.run({"text": "x" * 1000}, saga_id="S"))
    states = run(store.count_snapshots("S"))
    assert states == 11
    assert packed.count("context") == 1
    assert packed.count("state") == states + 1  # of each how far it is, and once who it is
    assert len(packed) < 3 * states
