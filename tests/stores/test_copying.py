"""Copies of a store are whole, verified, and gone on with where they were stopped."""

import contextlib
import sqlite3
from datetime import timedelta

import drive
import pytest

from sagaz_core import ReplayConfig, Saga, open_storage
from sagaz_core.engine.load import load_events, load_state
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import CopyError, CorruptDataError, DuplicateSagaError, StoreUnavailableError
from sagaz_core.events import StepStarted
from sagaz_core.storage import Batch
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot
from sagaz_core.storage.copying import copy_store
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.records import pack_event
from sagaz_core.storage.seals import opened
from sagaz_core.virtual_time import run


@pytest.fixture
def stores(tmp_path):
    made = [open_storage("memory://"), open_storage(f"sqlite:///{tmp_path}/to.db")]
    yield made
    for store in made:
        drive.now(store.close())


def fill(store, sagas=4):
    """Run sagas of two names, a minute apart, into the store."""
    for number in range(sagas):
        saga = Saga(("order", "refund")[number % 2], replay_config=ReplayConfig(index_keys=["n"]))
        for step in range(20):
            saga.add_step(f"s{step}", lambda ctx, step=step: {f"k{step}": step}, lambda ctx: None)
        moments = iter(range(10**6))
        start = T0 + timedelta(minutes=number)
        options = RunOptions(storage=store, clock=lambda: start + timedelta(milliseconds=next(moments)))  # noqa: B023
        run(run_saga(saga, {"n": number}, saga_id=f"saga{number}", options=options))
        drive.now(store.log_replay(a_replay(f"r{number}", f"saga{number}")))


def copied(source, target, **asked):
    return drive.now(copy_store(source, target, **asked))


def snapshots(store, saga_id):
    found, cursor = [], None
    while True:
        page = drive.now(store.list_snapshots(saga_id, cursor=cursor))
        found += [(s._replace(data=b"", base_seq=None, bases=()), state_bytes(s)) for s in page.items]
        cursor = page.cursor
        if cursor is None:
            return found


def opened_events(store, saga_id):
    return [event._replace(data=opened(event)) for event in drive.events(store, saga_id)]


def same(source, target, saga_id):
    assert drive.now(source.get_saga(saga_id)) == drive.now(target.get_saga(saga_id))
    assert opened_events(source, saga_id) == opened_events(target, saga_id)
    assert snapshots(source, saga_id) == snapshots(target, saga_id)
    assert list(drive.now(source.list_replays(saga_id))) == list(drive.now(target.list_replays(saga_id)))


def test_a_copy_has_all_of_it(stores):
    source, target = stores
    fill(source)
    done = copied(source, target)
    assert (done.sagas, done.there, done.events, done.snapshots, done.replays) == (4, 0, 4 * 42, 4 * 21, 4)
    for number in range(4):
        same(source, target, f"saga{number}")
    assert drive.now(target.find_sagas()) == drive.now(source.find_sagas())
    assert [s.saga_id for s in drive.now(target.find_sagas(tags={"n": "2"})).items] == ["saga2"]
    assert drive.now(load_state(target, "saga3")).to_data() == drive.now(load_state(source, "saga3")).to_data()
    assert len(drive.now(load_events(target, "saga3"))) == 42
    info = [drive.now(store.info()) for store in stores]
    assert info[0].snapshots == info[1].snapshots


def test_what_is_there_is_not_written_again(stores):
    source, target = stores
    fill(source)
    copied(source, target)
    writes = []
    write = target.write

    async def counting(batch):
        writes.append(batch)
        await write(batch)

    target.write = counting
    done = copied(source, target)
    assert (done.there, done.events, done.snapshots, done.replays) == (4, 0, 0, 0)
    drive.now(source.log_replay(a_replay("again", "saga1")))
    assert copied(source, target).replays == 1
    same(source, target, "saga1")
    assert all(not batch.events and not batch.snapshots for batch in writes)


def test_only_some_sagas_are_copied(stores):
    source, target = stores
    fill(source)
    seen = []
    done = copied(source, target, saga_name="order", since=T0 + timedelta(minutes=1), on_saga=lambda: seen.append(1))
    assert (done.sagas, len(seen)) == (1, 4)
    assert [record.saga_id for record in drive.now(target.list_sagas()).items] == ["saga2"]


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_a_copy_that_was_stopped_goes_on(stores, stop_at):
    source, target = stores
    fill(source, 2)
    write, count = target.write, []

    async def stopping(batch):
        count.append(1)
        if len(count) == stop_at:
            raise StoreUnavailableError("pulled the plug")
        await write(batch)

    target.write = stopping
    with contextlib.suppress(StoreUnavailableError):
        copied(source, target)
    target.write = write
    copied(source, target)
    for number in range(2):
        same(source, target, f"saga{number}")


def test_a_saga_that_went_on_since_is_brought_up_to_date(stores):
    source, target = stores
    writer = FrameWriter()
    made = [writer.frame(a_snapshot("s", seq), b"state %d" % seq) for seq in range(10)]
    events = [pack_event("s", StepStarted(seq, T0, "reserve", 1)) for seq in range(10)]
    drive.now(source.write(Batch("s", a_saga("s"), events[:5], made[:5])))
    copied(source, target)
    drive.now(source.write(Batch("s", None, events[5:], made[5:])))
    done = copied(source, target)
    assert (done.there, done.snapshots) == (0, 5)
    same(source, target, "s")


def test_a_snapshot_whose_bases_have_expired_is_copied(stores):
    source, target = stores
    writer = FrameWriter()
    made = [
        writer.frame(a_snapshot("s", seq, retention_until=T0 + timedelta(days=1 + seq)), b"state %d" % seq)
        for seq in range(6)
    ]
    drive.now(source.write(Batch("s", a_saga("s"), (), made)))
    for store in stores:
        store.clock = lambda: T0 + timedelta(days=4, seconds=1)
    assert copied(source, target).snapshots == 2
    assert [state for _, state in snapshots(target, "s")] == [b"state 4", b"state 5"]


def test_another_saga_of_the_same_id_stops_the_copy(stores):
    source, target = stores
    fill(source, 1)
    drive.now(target.write(Batch("saga0", a_saga("saga0"))))
    with pytest.raises(DuplicateSagaError, match="'saga0'"):
        copied(source, target)


def test_what_is_damaged_in_the_source_is_told_of_and_all_else_is_copied(stores, tmp_path):
    source, target = open_storage(f"sqlite:///{tmp_path}/from.db"), stores[1]
    fill(source, 3)
    held = drive.now(source.list_snapshots("saga1")).items
    with contextlib.closing(sqlite3.connect(tmp_path / "from.db", isolation_level=None)) as connection:
        connection.execute("UPDATE saga_events SET step = 'another' WHERE id = (2 << 32) + 7")
        connection.execute("UPDATE saga_snapshots SET phase = 'x' WHERE snapshot_id = ?", (held[5].snapshot_id,))
    for _ in range(2):
        done = copied(source, target)
        assert len(done.damaged) == 2
        assert "event 7 of saga 'saga1' is damaged" in done.damaged[0]
        assert f"snapshot {held[5].snapshot_id!r} of saga 'saga1' is damaged" in done.damaged[1]
    assert (done.sagas, done.there) == (3, 3)
    for saga_id in ("saga0", "saga2"):
        same(source, target, saga_id)
    assert [event.seq for event in drive.events(target, "saga1")] == [n for n in range(42) if n != 7]
    assert [one.seq for one, _ in snapshots(target, "saga1")] == [one.seq for n, one in enumerate(held) if n != 5]
    drive.now(source.close())


def test_of_a_chain_with_a_damaged_snapshot_those_are_copied_that_do_not_need_it(stores, tmp_path):
    source, target = open_storage(f"sqlite:///{tmp_path}/from.db"), stores[1]
    writer = FrameWriter()
    made = [writer.frame(a_snapshot("s", seq), b"state %d" % seq) for seq in range(20)]
    made[3] = made[3]._replace(data=made[3].data[:-1] + b"~")
    drive.now(source.write(Batch("s", a_saga("s"), (), made)))
    done = copied(source, target)
    assert [text.partition(" of saga")[0] for text in done.damaged] == [f"snapshot 's/{n}'" for n in range(3, 16)]
    assert [state for _, state in snapshots(target, "s")] == [b"state %d" % n for n in (0, 1, 2, 16, 17, 18, 19)]
    drive.now(source.close())


def test_a_store_that_cannot_list_beyond_what_is_damaged_is_copied_up_to_there(stores):
    source, target = stores
    fill(source, 3)
    list_sagas = source.list_sagas

    async def lists_one(*, limit, cursor):
        if cursor:
            raise CorruptDataError("what comes now is damaged")
        return await list_sagas(limit=1)

    source.list_sagas = lists_one
    done = copied(source, target)
    assert done.damaged == ["the sagas from there on are not copied: what comes now is damaged"]
    assert [record.saga_id for record in drive.now(target.list_sagas()).items] == ["saga0"]


def test_damage_in_the_target_stops_the_copy(stores):
    source, target = stores[1], stores[0]
    fill(source, 1)
    copied(source, target)
    held = target._sagas["saga0"].snapshots.items
    held[5] = held[5]._replace(data=b"")
    with pytest.raises(CopyError, match=r"memory:// has damaged records of saga 'saga0': snapshot"):
        copied(source, target)


def test_a_target_that_lies_is_found_out(stores):
    source, target = stores
    fill(source, 1)
    write = target.write

    async def lying(batch):
        await write(batch._replace(events=[event._replace(data=b"") for event in batch.events]))

    target.write = lying
    with pytest.raises(CopyError, match=r"event \d+ of saga 'saga0' is not in sqlite:///"):
        copied(source, target)
