"""When a step may start: once its snapshot is in the store, in one round trip with other sagas', or at once."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from sagaz_core import InMemorySnapshotStorage, ReplayConfig, Saga, SagaStatus, StepRejected, open_storage
from sagaz_core.engine.load import load_events, load_state
from sagaz_core.engine.run import resume_stored
from sagaz_core.errors import DuplicateSagaError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage import Batch
from sagaz_core.storage.contract import a_saga, a_snapshot, a_summary, an_event
from sagaz_core.storage.durability import BackgroundWriter, Delivery, GroupWriter, background_writer
from sagaz_core.storage.records import unpack_state
from sagaz_core.storage.together import Together
from sagaz_core.virtual_time import run

HERE = Path(__file__).parent
TRIP = 0.010


class Distant(InMemorySnapshotStorage):
    """A store that is a round trip away, and one that writes one thing at a time, as a disk does."""

    in_memory = False

    def __init__(self, fault=None):
        super().__init__()
        self.calls = []
        self.fault = fault
        self.line = asyncio.Lock()

    async def _trip(self, what, count):
        async with self.line:
            self.calls.append((what, count))
            await asyncio.sleep(TRIP)
            if self.fault is not None:
                self.fault(len(self.calls))

    async def write(self, batch):
        await self._trip("write", 1)
        await super().write(batch)

    async def write_many(self, batches):
        await self._trip("write_many", len(batches))
        return [await self._result(batch) for batch in batches]

    async def _result(self, batch):
        try:
            await InMemorySnapshotStorage.write(self, batch)
        except Exception as error:
            return error
        return None


def a_chain(store, durability, steps=5, seen=None, **config):
    made = Saga("chain", snapshot_storage=store, replay_config=ReplayConfig(durability=durability, **config))
    for number in range(steps):

        async def act(ctx, number=number):
            if seen is not None:
                seen.append((number, {s.step_name for s in store._snapshots.values()}))
            return {f"k{number}": number}

        made.add_step(f"s{number}", act, lambda ctx: None)
    return made


def many(store, durability, sagas, steps=5, **config):
    """Run that many sagas at once, and return how long it took."""

    async def main():
        loop = asyncio.get_running_loop()
        start = loop.time()
        runs = [a_chain(store, durability, steps, **config).run({}, saga_id=f"saga{n:03}") for n in range(sagas)]
        results = await asyncio.gather(*runs)
        assert {result.status for result in results} == {SagaStatus.COMPLETED}
        return loop.time() - start

    return run(main())


async def everything(store):
    """Return what a store has, but for ids and times."""
    found = {}
    for record in (await store.list_sagas(limit=1000)).items:
        saga_id = record.saga_id
        events = [type(event).__name__ for event in await load_events(store, saga_id)]
        state = await load_state(store, saga_id)
        snapshots = [(s.seq, s.phase, s.step_name) for s in (await store.list_snapshots(saga_id)).items]
        found[saga_id] = (events, state.status, dict(state.context), snapshots)
    return found


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
def test_what_is_stored_in_the_end_is_the_same(durability):
    stores = [Distant(), InMemorySnapshotStorage()]
    many(stores[0], durability, 7)
    many(stores[1], "sync", 7)
    assert run(everything(stores[0])) == run(everything(stores[1]))


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_a_step_starts_only_when_its_snapshot_is_stored(durability):
    store, seen = Distant(), []
    run(a_chain(store, durability, seen=seen).run({}))
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    for number, stored in seen:
        assert f"s{number}" in stored


def test_in_the_background_no_step_waits():
    store, seen = Distant(), []

    async def main():
        await a_chain(store, "background", seen=seen).run({})
        return len(store._snapshots)

    assert run(main()) == 6  # the run's end waits for all of them
    assert all(not stored for _, stored in seen)


def test_a_hundred_sagas_at_a_time_go_in_one_round_trip_a_step():
    alone, together = Distant(), Distant()
    alone_took, together_took = many(alone, "sync", 100), many(together, "group", 100)
    assert len(alone.calls) == 600
    assert together.calls == [("write_many", 100)] * 6
    assert alone_took == pytest.approx(600 * TRIP)
    assert together_took == pytest.approx(6 * TRIP)


def test_whoever_comes_during_a_round_trip_goes_with_the_next():
    store = Distant()

    async def main():
        writer = GroupWriter(store)

        async def later(number):
            await asyncio.sleep(number * TRIP / 10)
            await writer.write(Batch(f"s{number}", a_saga(f"s{number}")))

        await asyncio.gather(*(later(number) for number in range(15)))

    run(main())
    assert store.calls == [("write_many", 1), ("write_many", 10), ("write_many", 4)]


def test_one_that_is_refused_does_not_concern_the_others():
    store = Distant()

    async def main():
        await store.write(Batch("taken", a_saga("taken")))
        runs = [a_chain(store, "group").run({}, saga_id=saga_id) for saga_id in ("a", "taken", "b")]
        return await asyncio.gather(*runs, return_exceptions=True)

    results = run(main())
    assert [type(result).__name__ for result in results] == ["SagaResult", "DuplicateSagaError", "SagaResult"]


def test_a_saga_that_is_cancelled_while_it_waits_does_not_concern_the_others():
    store = Distant()

    async def main():
        tasks = [asyncio.ensure_future(a_chain(store, "group").run({}, saga_id=n)) for n in "abc"]
        await asyncio.sleep(TRIP * 1.5)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(result).__name__ for result in results]

    assert run(main()) == ["SagaResult", "CancelledError", "SagaResult"]
    found = run(everything(store))
    assert [status for _, status, _, _ in found.values()] == ["completed", "rolled_back", "completed"]


def down(*calls):
    def fault(number):
        if number in calls:
            raise StoreUnavailableError("the store is down")

    return fault


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_a_store_that_is_down_fails_the_run(durability):
    store = Distant(down(3))
    with pytest.raises(StoreUnavailableError):
        run(a_chain(store, durability).run({}))


@pytest.mark.parametrize("durability", ["sync", "group", "background"])
def test_with_warn_the_run_goes_on_and_all_is_stored_when_the_store_is_back(durability, caplog):
    store = Distant(down(1, 2) if durability == "background" else down(2, 3))
    result = run(a_chain(store, durability, on_capture_error="warn").run({}, saga_id="s"))
    assert result.status is SagaStatus.COMPLETED
    (found,) = run(everything(store)).values()
    assert found[:2] == (
        ["SagaStarted", *["StepStarted", "StepSucceeded"] * 5, "SagaCompleted"],
        SagaStatus.COMPLETED,
    )
    assert len(found[3]) == 6
    assert "the store is down" in caplog.text


def test_in_the_background_a_store_that_is_down_is_tried_again():
    store = Distant(down(1, 2, 3, 4))
    assert run(a_chain(store, "background").run({})).status is SagaStatus.COMPLETED
    assert [what for what, _ in store.calls] == ["write_many"] * len(store.calls)
    assert len(run(everything(store))) == 1


def test_in_the_background_what_is_refused_is_told_and_counted(caplog):
    store = Distant()

    async def main():
        await store.write(Batch("taken", a_saga("taken")))
        with pytest.raises(Exception, match="'taken' is stored already"):
            await a_chain(store, "background", steps=1).run({}, saga_id="taken")
        return background_writer(store).losses

    losses = run(main())
    assert losses.batches >= 1
    assert losses.events >= 1
    assert "are lost" in caplog.text


def test_in_the_background_a_refusal_is_told_once_and_what_comes_later_is_written():
    store = Distant()

    def refuse_once(call):
        if call == 1:
            raise StorageError("no such letter")

    async def main():
        store.fault = refuse_once
        writer, mine = BackgroundWriter(store), Delivery()
        writer.put(Batch("s", a_saga("s")), delivery=mine)
        with pytest.raises(StorageError, match="no such letter"):
            await writer.written("s", mine)
        writer.put(Batch("s", a_saga("s")), delivery=mine)
        await writer.written("s", mine)
        return [found.saga_id for found in (await store.list_sagas()).items], writer.losses.batches

    assert run(main()) == (["s"], 1)


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_in_the_background_a_run_under_an_id_that_is_taken_adds_nothing_to_the_other_one(on_error):
    store = Distant()

    async def main():
        await a_chain(store, "sync", steps=1).run({}, saga_id="taken")
        before = await everything(store)
        undone = []
        saga = a_chain(store, "background", steps=9, on_capture_error=on_error)
        saga.add_step("slow", lambda ctx: asyncio.sleep(1), lambda ctx: undone.append("slow"))
        saga.add_step("next", lambda ctx: None)
        try:
            result = await saga.run({}, saga_id="taken")
        except DuplicateSagaError:
            assert (on_error, undone) == ("raise", ["slow"])  # what it did is its own
        else:
            assert (on_error, result.status) == ("warn", SagaStatus.COMPLETED)
        assert await everything(store) == before

    run(main())


def test_in_the_background_nothing_of_a_run_is_written_behind_what_was_refused_of_it():
    store = Distant()

    def events(first, data):
        return [an_event("s", seq, data=data) for seq in (first, first + 1)]

    async def main():
        writer, mine, others = BackgroundWriter(store), Delivery(), Delivery()
        await store.write(Batch("s", a_saga("s"), events(0, b"theirs")))
        writer.put(Batch("s", None, events(1, b"mine")), delivery=mine)
        writer.put(Batch("s", None, events(3, b"mine")), delivery=mine)
        writer.put(Batch("s", None, events(2, b"theirs")), delivery=others)
        await writer.written("s", others)
        for _ in range(2):
            with pytest.raises(DuplicateSagaError):
                writer.put(Batch("s", None, events(5, b"mine")), delivery=mine)
        with pytest.raises(DuplicateSagaError):
            await writer.written("s", mine)
        return [event async for event in store.read_events("s")], writer.losses.events, mine.written, others.written

    assert run(main()) == ([*events(0, b"theirs"), *events(2, b"theirs")], 4, False, True)


def test_in_the_background_nor_is_what_came_while_it_was_refused():
    store = Distant()

    async def main():
        writer, mine = BackgroundWriter(store), Delivery()
        theirs = [an_event("s", seq, data=b"theirs") for seq in (0, 1)]
        await store.write(Batch("s", a_saga("s"), theirs, [a_snapshot("s", 0)]))
        writer.put(Batch("s", None, [an_event("s", 1, data=b"mine")]), forget_below=1, delivery=mine)
        await asyncio.sleep(TRIP / 2)  # it is on its way
        writer.put(
            Batch("s", None, [an_event("s", 2, data=b"mine")], [a_snapshot("s", 2)]), forget_below=2, delivery=mine
        )
        with pytest.raises(DuplicateSagaError):
            await writer.written("s", mine)
        assert writer.losses.events == 2
        stored = [event async for event in store.read_events("s")]
        return stored == theirs, [found.seq for found in (await store.list_snapshots("s")).items]

    assert run(main()) == (True, [0])


@pytest.mark.parametrize("last", [None, 2])
def test_in_the_background_what_waits_of_one_run_is_written_as_one_after_the_other(last):
    store = Distant()

    async def main():
        writer, mine = BackgroundWriter(store), Delivery()
        steps = [
            (Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)], a_summary("s", 0)), None),
            (Batch("s", None, [an_event("s", 1)], [a_snapshot("s", 1)]), 1),
            (Batch("s", None, [an_event("s", 2)], [a_snapshot("s", 2)], a_summary("s", 2, status="completed")), last),
            (Batch("s", None, [an_event("s", 3)]), None),
        ]
        for batch, forget_below in steps:
            writer.put(batch, forget_below, mine)
        await writer.written("s", mine)
        assert store.calls == [("write_many", 1)]
        assert await store.get_saga("s") == a_saga("s")
        assert [event async for event in store.read_events("s")] == [an_event("s", seq) for seq in range(4)]
        assert [found.status for found in (await store.find_sagas()).items] == ["completed"]
        return [found.seq for found in (await store.list_snapshots("s")).items]

    assert run(main()) == ([1, 2] if last is None else [2])


def test_in_the_background_a_store_that_is_back_is_waited_for_again():
    store, undone = Distant(), []

    async def main():
        down = True

        async def write_many(batches):
            await asyncio.sleep(TRIP)
            if down:
                raise StoreUnavailableError("down")
            return [await store._result(batch) for batch in batches]

        async def last():
            nonlocal down
            await asyncio.sleep(1)
            down = False
            await asyncio.sleep(10)  # it is tried again meanwhile
            raise StepRejected("no")

        async def undo(ctx):
            undone.extend([event.kind async for event in store.read_events("s")][-1:])

        store.write_many = write_many
        saga = Saga("order", snapshot_storage=store, replay_config=ReplayConfig(durability="background"))
        saga.add_step("a", lambda ctx: None, undo)
        saga.add_step("b", lambda ctx: last())
        assert (await saga.run({}, saga_id="s")).status is SagaStatus.ROLLED_BACK

    run(main())
    assert undone == ["CompensationStarted"]


def test_in_the_background_a_saga_whose_store_is_down_is_undone_without_waiting_for_it():
    store, undone = Distant(), []

    async def main():
        writes = []

        async def write_many(batches):
            writes.append(len(batches))
            if not back.is_set():
                raise StoreUnavailableError("down")
            return await InMemorySnapshotStorage.write_many(store, batches)

        back, store.write_many = asyncio.Event(), write_many
        saga = Saga("order", snapshot_storage=store, replay_config=ReplayConfig(durability="background"))

        def undo(name):
            undone.append((name, len(writes)))
            if name == "a":
                back.set()

        def refuse(ctx):
            raise StepRejected("no")

        for name in "ab":
            saga.add_step(name, lambda ctx: None, lambda ctx, *, name=name: undo(name))
        saga.add_step("c", refuse)
        assert (await saga.run({}, saga_id="s")).status is SagaStatus.ROLLED_BACK

    run(main())
    assert undone == [("b", 1), ("a", 1)]  # the first try is waited for, and no other one


@pytest.mark.parametrize(
    ("durability", "on_error"), [("sync", "warn"), ("group", "warn"), ("background", "warn"), ("background", "raise")]
)
def test_a_store_that_hangs_is_not_waited_for_by_each_compensation_of_what_may_run_on(durability, on_error):
    store, undone = Distant(), []

    async def main():
        back = asyncio.Event()

        async def write_many(batches):
            await back.wait()
            return [await store._result(batch) for batch in batches]

        async def write(batch):
            await write_many([batch])

        def undo(name):
            undone.append((name, asyncio.get_running_loop().time() - start))
            if name == "a":
                back.set()

        def refuse(ctx):
            raise StepRejected("no")

        store.write, store.write_many, start = write, write_many, asyncio.get_running_loop().time()
        config = ReplayConfig(durability=durability, capture_timeout=9, on_capture_error=on_error)
        saga = Saga("order", snapshot_storage=store, replay_config=config)
        for name in "abc":
            saga.add_step(name, lambda ctx: None, lambda ctx, *, name=name: undo(name))
        saga.add_step("d", refuse)
        with nullcontext() if on_error == "warn" else pytest.raises(StoreUnavailableError, match="within 9 s"):
            assert (await saga.run({}, saga_id="s")).status is SagaStatus.ROLLED_BACK

    run(main())
    assert undone == [("c", 9), ("b", 9), ("a", 9)]  # in virtual time


def test_a_full_queue_blocks_nobody_and_counts_what_it_loses(caplog):
    store = Distant()

    async def main():
        writer = BackgroundWriter(store, max_batches=3)
        room = [writer.put(Batch(f"s{n}", None, [an_event(f"s{n}", 0)])) for n in range(5)]
        await writer.written("s2")
        return room, writer.losses, writer.put(Batch("s5", None, [an_event("s5", 0)]))

    with caplog.at_level(logging.WARNING):
        room, losses, after = run(main())
    assert room == [True, True, True, False, False]
    assert after
    assert repr(losses) == "Losses(batches=2, events=2, snapshots=0)"
    assert caplog.text.count("1 events and 0 snapshots are lost: 3 batches wait already") == 2


def test_the_queue_is_bounded_in_bytes(caplog):
    async def main():
        writer = BackgroundWriter(Distant(), max_bytes=1000)
        room = [writer.put(Batch("s", None, [an_event("s", n, data=bytes(400))])) for n in range(4)]
        await writer.written("s")
        return room, writer.put(Batch("s", None, [an_event("s", 9, data=bytes(5000))]))

    with caplog.at_level(logging.WARNING):
        assert run(main()) == ([True, True, False, False], True)  # one that is larger than all is taken alone
    assert caplog.text.count("are lost: 800 bytes wait already") == 2


def test_after_a_loss_the_next_snapshot_stands_alone():
    store = Distant()

    async def main():
        writer = background_writer(store)
        writer.max_batches = 2
        saga = a_chain(store, "background", steps=6)

        async def wait(ctx):
            await writer.written("s")

        saga.add_step("wait", wait)
        saga.add_step("last", lambda ctx: None)
        await saga.run({}, saga_id="s")
        return writer.losses

    losses = run(main())
    assert losses.snapshots > 0
    snapshots = run(store.list_snapshots("s")).items
    assert len(snapshots) + losses.snapshots == 9
    assert [one.base_seq for one in snapshots][:3] == [None, 0, None]
    assert [unpack_state(one).seq for one in snapshots] == [one.seq for one in snapshots]
    assert run(load_state(store, "s")).status is SagaStatus.COMPLETED


@pytest.mark.parametrize("durability", ["group", "background"])
def test_only_so_many_snapshots_are_kept(durability):
    store = Distant()
    run(a_chain(store, durability, steps=8, max_snapshots_per_saga=3).run({}, saga_id="s"))
    assert run(store.count_snapshots("s")) == 3
    assert run(load_state(store, "s")).status is SagaStatus.COMPLETED


def test_what_waits_when_the_loop_ends_is_written():
    store = InMemorySnapshotStorage()

    async def main():
        background_writer(store).put(Batch("s", a_saga("s")))

    asyncio.run(main())
    assert len(asyncio.run(store.list_sagas()).items) == 1


def test_what_cannot_be_written_when_the_loop_ends_is_counted_and_waited_for_no_longer():
    store = Distant()

    async def write_many(batches):
        store.calls.append(len(batches))
        if len(store.calls) == 1:
            await asyncio.Event().wait()
        raise StoreUnavailableError("down")

    async def main():
        store.write_many = write_many
        writer = background_writer(store)
        writer.put(Batch("s", a_saga("s")))
        waiting = [asyncio.create_task(writer.written("s"))]
        await asyncio.sleep(0)
        writer.put(Batch("t", a_saga("t")))
        waiting.append(asyncio.create_task(writer.written("t")))
        await asyncio.sleep(0)
        writer._task.cancel()
        await asyncio.gather(*waiting)
        return writer.losses.batches

    assert run(main()) == 2


def test_of_many_that_ask_at_once_a_part_goes_in_each_of_several_calls_at_the_same_time():
    """And few wait for a call that is under way, to go together in the next one."""
    calls, answers = [], []

    async def do(asked):
        calls.append(len(asked))
        answers.append(asyncio.get_running_loop().create_future())
        await answers[-1]
        return asked

    async def main():
        together = Together(do, 4)
        asking = []

        async def ask(count):
            asking.append([asyncio.ensure_future(together.ask(number)) for number in range(count)])
            await turns()

        async def turns():
            for _ in range(4):
                await asyncio.sleep(0)

        await ask(100)
        assert calls == [25, 25, 25, 25]
        await ask(60)
        assert len(calls) == 4  # no more than four
        answers[1].set_result(None)
        await turns()
        assert calls[4:] == [34]  # a quarter of 75 under way and 60 that wait
        answers[2].set_result(None)
        await turns()
        assert calls[5:] == [26]
        answers[3].set_result(None)
        await turns()
        await ask(23)
        assert len(calls) == 6  # too few for a call beside three
        await ask(1)
        assert calls[6:] == [24]
        await ask(10)
        answers[6].set_result(None)
        await turns()
        assert calls[7:] == [10]  # who has done one takes in what waits, however little
        for answer in (answers[0], answers[4], answers[5], answers[7]):
            answer.set_result(None)
        found = [await asyncio.gather(*some) for some in asking]
        assert found == [list(range(count)) for count in (100, 60, 23, 1, 10)]
        await ask(50)
        assert calls[8:] == [25, 25]  # and not 13 in each of four
        assert together._under_way == 50
        for answer in answers[8:]:
            answer.set_result(None)
        await turns()
        assert together._under_way == 0

    run(main())


def test_a_call_that_nobody_waits_for_any_more_keeps_no_other_from_being_made():
    """A store may never answer. Who waited for it asks again, and need not wait for what was asked before."""
    calls = []

    async def do(asked):
        calls.append(asked)
        if len(calls) == 1:
            await asyncio.Future()
        return asked

    async def main():
        together = Together(do)

        async def ask(number):
            try:
                return await together.ask(number)
            except asyncio.CancelledError:
                together.give_up()
                raise

        first, second = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        await asyncio.sleep(1)
        third, fourth = asyncio.create_task(ask(3)), asyncio.create_task(ask(4))
        await asyncio.sleep(1)
        assert calls == [[1, 2]]
        first.cancel()
        third.cancel()
        await asyncio.sleep(1)
        assert calls == [[1, 2]]  # one still waits for it
        second.cancel()
        assert await fourth == 4
        assert calls == [[1, 2], [4]]
        assert await ask(5) == 5
        assert (together._under_way, together._asked) == (0, {})

    run(main())


def cancel_all_others():
    """Do what `asyncio.run` does at its end."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_a_group_whose_task_was_cancelled_before_it_had_begun_keeps_nobody_waiting():
    async def main():
        store = Distant()
        writer = GroupWriter(store)
        first = asyncio.create_task(writer.write(Batch("a", a_saga("a"))))
        await asyncio.sleep(0)
        cancel_all_others()
        with pytest.raises(asyncio.CancelledError):
            await first
        waiting = asyncio.create_task(
            asyncio.wait([asyncio.ensure_future(writer._together.ask(Batch("a", a_saga("a"))))])
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer._together._tasks[0].cancel()
        await waiting  # it was not cancelled itself, as what is shielded is not
        await writer.write(Batch("b", a_saga("b")))
        return [record.saga_id for record in (await store.list_sagas()).items]

    assert run(main()) == ["b"]


def test_in_the_background_a_task_that_was_cancelled_before_it_had_begun_is_begun_again():
    async def main():
        store = Distant()
        writer = BackgroundWriter(store)
        assert writer.put(Batch("a", a_saga("a")))
        cancel_all_others()
        await asyncio.sleep(0)
        await writer.written("a")
        return [record.saga_id for record in (await store.list_sagas()).items], writer.losses.batches

    assert run(main()) == (["a"], 0)


def test_durability_is_one_of_three():
    with pytest.raises(UsageError, match="durability"):
        ReplayConfig(durability="never")


# ---- a store that fails between two steps


class Failing(InMemorySnapshotStorage):
    """A store whose writes fail in one of several ways, from one of them on, until it is back."""

    def __init__(self, how, first, count):
        super().__init__()
        self.how, self.failing, self.calls = how, range(first, first + count), 0

    async def write(self, batch):
        self.calls += 1
        if self.calls not in self.failing:
            return await super().write(batch)
        if self.how == "lost mid-write":
            await super().write(batch)
        if self.how == "slow":
            await asyncio.sleep(1_000_000)
        raise StoreUnavailableError(f"the store failed: {self.how}")


HOW = ["refused", "lost mid-write", "slow", "read-only", "full disk"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("first", range(1, 7))
def test_with_warn_a_fault_of_the_store_loses_and_doubles_nothing(how, first):
    store = Failing(how, first, 1 if how == "slow" else 2)
    result = run(a_chain(store, "sync", on_capture_error="warn").run({}, saga_id="s"))
    assert result.status is SagaStatus.COMPLETED
    if first < 5:  # the store is back before the end
        assert run(load_events(store, "s")) == list(result.events)
        for snapshot in run(store.list_snapshots("s")).items:
            unpack_state(snapshot)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("first", range(2, 7))
def test_a_fault_of_the_store_is_an_error_and_the_saga_is_resumed_when_it_is_back(how, first):
    store = Failing(how, first, 1_000_000)
    with pytest.raises(StoreUnavailableError, match="did not answer" if how == "slow" else how):
        run(a_chain(store, "sync").run({}, saga_id="s"))
    store.failing = range(0)
    before = run(load_events(store, "s"))
    result = run(resume_stored(a_chain(store, "sync"), "s"))
    events = run(load_events(store, "s"))
    assert events[: len(before)] == before
    assert [event.seq for event in events] == list(range(len(events)))
    assert result.status.ended
    assert run(load_state(store, "s")).status is result.status
    assert [s.status for s in run(store.find_sagas(status=result.status.value)).items] == [result.status.value]


# ---- a process that is killed


def killed(tmp_path, durability, at):
    """Run a saga in a process that is killed in step `at`, and return the store."""
    url = f"sqlite:///{tmp_path}/sagaz.db"
    process = subprocess.run(
        [sys.executable, str(HERE / "killed_saga.py"), url, durability, str(at), str(tmp_path / "effects")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    return open_storage(url), (tmp_path / "effects").read_text().split()


@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("at", [0, 3])
def test_after_a_kill_nothing_is_lost_or_doubled(tmp_path, durability, at):
    import killed_saga

    store, effects = killed(tmp_path, durability, at)
    assert effects == [f"s{number}" for number in range(at + 1)]
    state = run(load_state(store, "s"))
    assert list(state.results) == effects[:-1]
    assert list(state.running) == effects[-1:]
    saga = killed_saga.make(store, durability, -1, tmp_path / "effects")
    result = run(resume_stored(saga, "s"))
    assert result.status is SagaStatus.COMPLETED
    done = (tmp_path / "effects").read_text().split()
    assert done == [*effects, *[f"s{number}" for number in range(at, 5)]]
    events = run(load_events(store, "s"))
    assert [event.seq for event in events] == list(range(len(events)))
    run(store.close())


def test_after_a_kill_in_the_background_what_is_there_is_whole(tmp_path):
    store, effects = killed(tmp_path, "background", 4)
    assert effects == ["s0", "s1", "s2", "s3", "s4"]
    events = run(load_events(store, "s"))
    assert [event.seq for event in events] == list(range(len(events)))
    run(store.close())
