"""A process that dies, and another one that takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import freezegun
import pytest
from dags import StepShape, Watched, World, build, shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_core import ReplayConfig, Saga, SagaStatus, StepRejected, open_storage
from sagaz_core.engine.load import load_state, load_state_to_resume
from sagaz_core.engine.run import resume_saga
from sagaz_core.errors import (
    DriftError,
    DuplicateSagaError,
    StoreUnavailableError,
    UnknownSagaError,
    UnknownStepError,
    UsageError,
)
from sagaz_core.events import SagaCompleted, SagaFailed, SagaResumed, SagaRolledBack
from sagaz_core.state import SagaState
from sagaz_core.storage.base import SagaSnapshot
from sagaz_core.storage.codec import decode, encode
from sagaz_core.storage.durability import background_writer
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import run


class Died(BaseException):
    """The process is gone."""


async def written(store: Any, saga_id: str) -> None:
    """Wait until the store has what was left behind the saga's back."""
    await background_writer(store).written(saga_id)


def cut(events: Any, count: int) -> SagaState:
    state = SagaState()
    for event in events[:count]:
        state.apply(event)
    return SagaState.from_data(decode(encode(state.to_data())))


def effects(world: World) -> dict[str, int]:
    """How often each step's effect is there: a step that is run again finds its effect, as it should."""
    there: dict[str, int] = {}
    for mark, step in world.log:
        if mark in ("do", "undo"):
            there[step] = 1 if mark == "do" else 0
    return there


@settings(max_examples=60, deadline=None)
@given(shapes(5), st.booleans())
def test_cut_after_any_event_and_resumed_it_ends_as_it_should(shape: Any, twice: bool) -> None:
    shape = tuple(StepShape(**{**step.__dict__, "fails": step.fails.replace("flaky", "")}) for step in shape)
    first = Watched(build(shape, World()))
    run(first.run({"start": 1}))
    assert first.journal is not None
    events = first.journal.events
    for count in range(1, len(events) + 1):
        world = World()
        watched = Watched(build(shape, world))
        state = cut(events, count)
        if state.status.ended:
            assert isinstance(events[count - 1], (SagaCompleted, SagaRolledBack, SagaFailed))
            continue
        world.log += [("do", name) for name in state.results] + [("do", name) for name in state.undone]
        world.log += [("undo", name) for name in state.undone]
        running = list(state.running)
        run(watched.resume(state))
        assert watched.journal is not None
        if twice:  # the second process dies too, in the middle
            more = watched.journal.events
            state = cut([*events[:count], *more], count + len(more) // 2)
            if state.status.ended:
                continue
            watched = Watched(build(shape, world))
            run(watched.resume(state))
            assert watched.journal is not None
        state = watched.journal.state
        assert isinstance(watched.journal.events[0], SagaResumed)
        assert state.status.ended
        assert not state.running
        there = effects(world)
        if state.status is SagaStatus.COMPLETED:
            assert all(there[step.name] for step in shape)
        else:
            assert state.context == {"start": 1}
            assert [name for name, count in there.items() if count and _undoable(shape, name)] == []
            for name in running:
                step = next(step for step in shape if step.name == name)
                if step.in_doubt and step.undoable:
                    assert name in state.undone, "it was running, so its effect may have happened"


def _undoable(shape: Any, name: str) -> bool:
    return next(step.undoable for step in shape if step.name == name)


def test_a_refusal_after_a_crash_does_not_tell_of_the_attempt_before() -> None:
    undone: list[str] = []

    async def refuses(ctx: Any) -> None:
        raise StepRejected

    saga: Saga[Any] = Saga("s").add_step("a", refuses, lambda ctx: undone.append("a"), in_doubt="compensate")
    watched = Watched(saga)
    run(watched.run())
    assert undone == []
    assert watched.journal is not None
    run(Watched(saga).resume(cut(watched.journal.events, 2)))
    assert undone == ["a"]


# ---- from a store


def order(log: list[str], *, store: Any = None, die: str = "", failing: bool = False, **config: Any) -> Saga[Any]:
    def step(name: str) -> Any:
        def act(ctx: Any) -> Any:
            log.append(name)
            if die == name:
                raise Died
            if failing and name == "c":
                raise OSError
            return {name: [1]}

        return act

    saga: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=ReplayConfig(**config))
    for name in "abc":
        saga.add_step(name, step(name), lambda ctx, result, *, name=name: log.append(f"-{name} {result}"))
    return saga


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step", "on_failure"])
@pytest.mark.parametrize("failing", [True, False])
def test_a_saga_is_resumed_from_its_store(journal: bool, strategy: Any, failing: bool) -> None:
    if not journal and strategy != "before_each_step":
        return  # knows nothing of the step that it died in
    store, log = InMemorySnapshotStorage(), list[str]()
    options = {"store": store, "journal": journal, "snapshot_strategy": strategy, "failing": failing}

    async def main() -> Any:
        with pytest.raises(Died) as caught:
            await order(log, die="b", **options).run({"x": 1}, saga_id="S")
        assert not isinstance(caught.value, Exception)
        result = await order(log, **options).resume("S")
        again = await order(log, **options).resume("S")
        return result, again

    result, again = run(main())
    if failing:
        assert log == ["a", "b", "b", "c", "-b {'b': [1]}", "-a {'a': [1]}"]
        assert (result.status, result.context) == (SagaStatus.ROLLED_BACK, {"x": 1})
    else:
        assert log == ["a", "b", "b", "c"]
        assert result.context == {"x": 1, "a": [1], "b": [1], "c": [1]}
    assert (again.status, again.context, again.events) == (result.status, result.context, ())


def test_of_two_processes_that_go_on_at_the_same_moment_one_is_refused() -> None:
    store, log = InMemorySnapshotStorage(), list[str]()

    async def main() -> list[Any]:
        with pytest.raises(Died):
            await order(log, store=store, die="b").run(saga_id="S")
        states = [await load_state_to_resume(store, "S") for _ in range(2)]
        resumed = (resume_saga(order(log, store=store), state) for state in states)
        return await asyncio.gather(*resumed, return_exceptions=True)

    with freezegun.freeze_time("2026-07-15T14:30:00"):
        ends = run(main())
    assert sorted(type(end).__name__ for end in ends) == ["DuplicateSagaError", "SagaResult"]
    assert log == ["a", "b", "b", "c"]


@pytest.mark.parametrize("off", [{"enable_snapshots": False}, {"journal": False, "snapshot_strategy": "manual"}])
@pytest.mark.parametrize("journal", [True, False])
def test_how_a_resumed_saga_ends_is_stored_also_when_its_class_captures_no_more(journal: bool, off: Any) -> None:
    store, log = InMemorySnapshotStorage(), list[str]()

    async def main() -> Any:
        with pytest.raises(Died):
            await order(log, store=store, die="b", journal=journal).run(saga_id="S")
        first = await order(log, store=store, **off).resume("S")
        return first.status, (await order(log, store=store, **off).resume("S")).status

    assert run(main()) == (SagaStatus.COMPLETED, SagaStatus.COMPLETED)
    assert log == ["a", "b", "b", "c"], "nothing is run by the second"


def test_a_step_that_was_running_is_in_doubt_also_without_a_journal() -> None:
    store, undone = InMemorySnapshotStorage(), list[str]()

    def saga(error: BaseException) -> Saga[Any]:
        def act(ctx: Any) -> None:
            raise error

        made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(journal=False))
        return made.add_step("a", act, lambda ctx: undone.append("a"), in_doubt="compensate")

    async def main() -> None:
        with pytest.raises(Died):
            await saga(Died()).run(saga_id="S")
        await saga(StepRejected()).resume("S")

    run(main())
    assert undone == ["a"]


def test_what_cannot_be_resumed_says_why() -> None:
    store = InMemorySnapshotStorage()
    log: list[str] = []
    with pytest.raises(UsageError, match="without a store"):
        run(order(log).resume("S"))
    with pytest.raises(UnknownSagaError, match="no saga 'S'"):
        run(order(log, store=store).resume("S"))
    with pytest.raises(Died):
        run(order(log, store=store, die="b").run(saga_id="S"))
    changed = order(log, store=store).add_step("d", print)
    with pytest.raises(DriftError, match=r"step 'd' is new .* or --allow-drift resumes it"):
        run(changed.resume("S"))
    assert run(changed.resume("S", allow_drift=True)).success


def test_the_limit_of_snapshots_counts_those_of_the_process_before() -> None:
    store, log = InMemorySnapshotStorage(), list[str]()

    async def main() -> int:
        with pytest.raises(Died):
            await order(log, store=store, die="c", max_snapshots_per_saga=2).run(saga_id="S")
        await order(log, store=store, max_snapshots_per_saga=2).resume("S")
        return await store.count_snapshots("S")

    assert run(main()) == 2


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("durability", ["sync", "group", "background"])
@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step", "on_failure"])
def test_what_a_resumed_saga_captures_is_behind_all_that_is_stored(
    journal: bool, durability: Any, strategy: Any
) -> None:
    store, log = InMemorySnapshotStorage(), list[str]()
    options = {"store": store, "journal": journal, "snapshot_strategy": strategy, "durability": durability}

    async def stored() -> list[SagaSnapshot]:
        return list((await store.list_snapshots("S")).items)

    async def main() -> None:
        counts = []
        for number, die in enumerate(("b", "b", "c", "")):
            before = await stored()
            try:
                made = order(log, die=die, failing=True, **options)
                await (made.resume("S") if number else made.run({"x": 1}, saga_id="S"))
            except Died:
                pass
            except (UnknownStepError, UnknownSagaError):
                assert strategy == "on_failure" or durability == "background"  # nothing was captured to go on from
                return
            found = await stored()
            assert found[: len(before)] == before
            assert [one.snapshot_id for one in found] == [f"S@{one.seq}" for one in found]
            assert len({one.seq for one in found}) == len(found)
            counts.append(len(found))
        assert counts == sorted(counts)
        assert found[-1].status == "rolled_back"

    run(main())


def test_a_process_that_was_taken_for_dead_is_told_by_a_snapshot_of_the_other_also_without_a_journal() -> None:
    store, log = InMemorySnapshotStorage(), list[str]()
    options = {"store": store, "journal": False, "snapshot_strategy": "after_each_step"}

    async def main() -> None:
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def waits(ctx: Any) -> Any:
            begun.set()
            await goes_on.wait()
            return {"late": True}

        slow: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=order(log, **options).replay_config)
        slow.add_step("a", lambda ctx: {"a": 1}).add_step("b", waits)
        quick: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=slow.replay_config)
        quick.add_step("a", lambda ctx: {"a": 1}).add_step("b", lambda ctx: {"quick": True})
        first = asyncio.create_task(slow.run(saga_id="S"))
        await begun.wait()
        assert (await quick.resume("S")).context == {"a": 1, "quick": True}
        last = await store.latest_snapshot("S")
        goes_on.set()
        with pytest.raises(DuplicateSagaError, match="there is another snapshot 'S@5' already"):
            await first
        assert await store.latest_snapshot("S") == last

    run(main())


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("strategy", ["before_each_step", "after_each_step", "on_failure"])
@pytest.mark.parametrize("failing", [True, False])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///two.db"])
def test_of_two_that_go_on_with_a_saga_one_stops_and_undoes_nothing(
    url: str,
    wide: bool,
    failing: bool,
    strategy: Any,
    on_error: Any,
    durability: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    log: list[str] = []

    def made(store: Any, *, die: bool = False) -> Saga[Any]:
        def step(name: str) -> Any:
            async def act(ctx: Any) -> Any:
                if die and name == "b":
                    await written(store, "S")
                    raise Died
                await asyncio.sleep(0.01)
                if failing and name == "d":
                    raise OSError
                return {name: 1}

            return act

        config = ReplayConfig(snapshot_strategy=strategy, durability=durability, on_capture_error=on_error)
        saga: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=config)
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["a"] if wide else ["b"]), ("d", ["b", "c"])):
            saga.add_step(name, step(name), lambda ctx, *, name=name: log.append(f"-{name}"), depends_on=needs)
        return saga

    async def main() -> None:
        store = open_storage(url)
        with pytest.raises(Died):
            await made(store, die=True).run(saga_id="S")
        both = await asyncio.gather(made(store).resume("S"), made(store).resume("S"), return_exceptions=True)
        ended = [one for one in both if not isinstance(one, BaseException)]
        stopped = [one for one in both if isinstance(one, DuplicateSagaError)]
        assert (len(ended), len(stopped)) == (1, 1)
        assert ended[0].status is (SagaStatus.ROLLED_BACK if failing else SagaStatus.COMPLETED)
        summaries = (await store.find_sagas()).items
        assert [one.status for one in summaries] == [ended[0].status.value]
        await store.close()

    run(main())
    assert sorted(log) == (["-a", "-b", "-c"] if failing else [])


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///two.db"])
@pytest.mark.parametrize("fails", ["b", "c"])
def test_a_process_that_was_taken_for_dead_undoes_nothing_of_what_the_other_completed(
    fails: str, url: str, on_error: Any, durability: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log: list[str] = []

    async def main() -> None:
        store, begun, goes_on = open_storage(url), asyncio.Event(), asyncio.Event()

        def made(*, slow: bool) -> Saga[Any]:
            async def act(name: str) -> Any:
                if slow and name == "b":
                    await written(store, "S")
                    begun.set()
                    await goes_on.wait()
                if slow and name == fails:
                    raise StepRejected("no")
                log.append(f"+{name}")
                return {name: slow}

            config = ReplayConfig(durability=durability, on_capture_error=on_error)
            saga: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=config)
            for name in "abc":
                saga.add_step(
                    name, lambda ctx, *, name=name: act(name), lambda ctx, *, name=name: log.append(f"-{name}")
                )
            return saga

        first = asyncio.create_task(made(slow=True).run(saga_id="S"))
        await begun.wait()
        assert (await made(slow=False).resume("S")).status is SagaStatus.COMPLETED
        before = [event async for event in store.read_events("S")]
        goes_on.set()
        with pytest.raises(DuplicateSagaError):
            await first
        assert [event async for event in store.read_events("S")] == before
        assert [one.status for one in (await store.find_sagas()).items] == ["completed"]
        await store.close()

    run(main())
    assert [entry for entry in log if entry.startswith("-")] == []


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_saga_that_is_taken_over_while_it_is_undone_is_undone_by_the_other(on_error: Any, durability: Any) -> None:
    store, log = InMemorySnapshotStorage(), list[str]()

    def made(goes_on: asyncio.Event | None = None, begun: asyncio.Event | None = None) -> Saga[Any]:
        async def undo(ctx: Any) -> None:
            if goes_on is not None and begun is not None:
                begun.set()
                await goes_on.wait()
            log.append("-b")

        def refuse(ctx: Any) -> None:
            raise StepRejected("no")

        config = ReplayConfig(durability=durability, on_capture_error=on_error)
        saga: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=config)
        saga.add_step("a", lambda ctx: None, lambda ctx: log.append("-a")).add_step("b", lambda ctx: None, undo)
        return saga.add_step("c", refuse)

    async def main() -> None:
        goes_on, begun = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(made(goes_on, begun).run(saga_id="S"))
        await begun.wait()
        assert (await made().resume("S")).status is SagaStatus.ROLLED_BACK
        goes_on.set()
        with pytest.raises(DuplicateSagaError):
            await first

    run(main())
    assert log == ["-b", "-a", "-b"]  # what was under way cannot be called back; behind it the first one stops


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_who_cannot_say_that_it_goes_on_with_a_saga_runs_and_undoes_nothing(on_error: Any, durability: Any) -> None:
    """The store may be held by the process that was taken for dead."""
    log: list[str] = []

    class Held(InMemorySnapshotStorage):
        held = False

        async def write(self, batch: Any) -> None:
            if self.held:
                raise StoreUnavailableError("held")
            await super().write(batch)

        async def write_many(self, batches: Any) -> Any:
            if self.held:
                raise StoreUnavailableError("held")
            return await super().write_many(batches)

    async def main() -> None:
        store = Held()
        with pytest.raises(Died):
            await order(log, store=store, die="b").run(saga_id="S")
        before = await load_state(store, "S")
        log.clear()
        store.held = True
        options = {"on_capture_error": on_error, "durability": durability, "capture_timeout": 9}
        with pytest.raises(StoreUnavailableError):
            await order(log, store=store, **options).resume("S")
        assert log == []
        assert (await load_state(store, "S")).to_data() == before.to_data()
        store.held = False
        await written(store, "S")
        assert (await load_state(store, "S")).to_data() == before.to_data()  # nor is it said later
        assert (await order(log, store=store).resume("S")).success

    run(main())


@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("in_doubt", ["ignore", "compensate"])
def test_a_store_that_fails_a_resumed_saga_does_not_turn_it_back_from_a_step_that_would_be_left(
    in_doubt: Any, durability: Any
) -> None:
    """The process that died may have done it. It is run again, and so known, as soon as the store is back."""
    log: list[str] = []

    class Fails(InMemorySnapshotStorage):
        writes = 0

        async def write(self, batch: Any) -> None:
            self.writes += 1
            if self.writes == 2:  # that the saga is resumed was the first
                raise StoreUnavailableError("gone")
            await super().write(batch)

    def made(store: Any, dies: bool) -> Saga[Any]:
        def act(ctx: Any) -> None:
            log.append("b")
            if dies:
                raise Died

        saga: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=ReplayConfig(durability=durability))
        saga.add_step("a", lambda ctx: log.append("a"), lambda ctx: log.append("-a"))
        return saga.add_step("b", act, lambda ctx: log.append("-b"), in_doubt=in_doubt)

    async def main() -> list[str]:
        store = Fails()
        store.writes = -100
        with pytest.raises(Died):
            await made(store, True).run(saga_id="S")
        store.writes = 0
        with pytest.raises(StoreUnavailableError, match="gone"):
            await made(store, False).resume("S")
        return [(await load_state(store, "S")).status, (await made(store, False).resume("S")).status]

    if in_doubt == "ignore":
        assert run(main()) == ["executing", "completed"]
        assert log == ["a", "b", "b"]
    else:
        assert run(main()) == ["rolled_back", "rolled_back"]
        assert log == ["a", "b", "-b", "-a"]


SCRIPT = """
import os, sys, time
from sagaz_core import Saga, open_storage
from sagaz_core.engine.capture import take_snapshot
import asyncio

def act(name, die):
    async def run(ctx):
        with open("effects", "a") as file:
            file.write(name + "\\n")
        if die == name:
            print("inside", flush=True)
            await asyncio.sleep(60)
        return {name: 1}
    return run

async def main(url, die, resume):
    saga = Saga("order", snapshot_storage=open_storage(url))
    for name in ("a", "b", "c"):
        saga.add_step(name, act(name, die))
    result = await (saga.resume("S") if resume else saga.run({"x": 1}, saga_id="S"))
    print(result.status.value, dict(result.context))

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "resume"))
"""


def test_a_process_that_is_killed_is_taken_over_by_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sagaz.db'}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, url]
    with subprocess.Popen(
        [*command, "b", "run"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "inside\n"
        victim.send_signal(signal.SIGKILL)
    second = subprocess.run(
        [*command, "", "resume"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert second.stdout == "completed {'x': 1, 'a': 1, 'b': 1, 'c': 1}\n"
    assert (tmp_path / "effects").read_text().split() == ["a", "b", "b", "c"]

    async def kinds() -> list[str]:
        store = open_storage(url)
        found = [event.kind async for event in store.read_events("S")]
        await store.close()
        return found

    assert run(kinds()).count("SagaResumed") == 1


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_a_saga_that_is_gone_on_with_may_do_without_its_store_then_if_it_is_told_so(durability: Any) -> None:
    class Failing(InMemorySnapshotStorage):
        writes = 0

        async def write(self, batch: Any) -> None:
            self.writes += 1
            if self.writes > 1:
                raise StoreUnavailableError("down")
            await super().write(batch)

        async def write_many(self, batches: Any) -> Any:
            for batch in batches:
                await self.write(batch)
            return [None] * len(batches)

    async def main() -> None:
        log: list[str] = []
        store = Failing()
        with pytest.raises(Died):
            await order(log, store=store, die="a").run(saga_id="S")
        store.writes = 0
        assert (await order(log, store=store, durability=durability, on_capture_error="warn").resume("S")).success
        assert store.writes > 2

    run(main())
