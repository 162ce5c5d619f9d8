"""The Redis store, on a real server."""

import asyncio
from datetime import timedelta
from urllib.parse import urlsplit

import fakeredis
import pytest
import redis
from fakeredis import FakeAsyncRedisConnection
from proxy import Proxy

from sagaz_core.clock import utc_now
from sagaz_core.errors import DuplicateSagaError, SchemaError, StoreUnavailableError
from sagaz_core.storage import (
    Batch,
    SagaSummary,
    _redis_parts,
    _redis_run_reading,
    _redis_runs,
    _redis_sagas,
    _redis_snapshots,
    open_storage,
)
from sagaz_core.storage._network import Pool
from sagaz_core.storage._redis_records import pack, seal, unpack_log
from sagaz_core.storage._redis_runs import SHORT
from sagaz_core.storage.contract import T0, SnapshotStorageContract, a_replay, a_saga, a_snapshot, an_event
from sagaz_core.storage.copying import copy_store
from sagaz_core.storage.frames import FrameWriter, standalone, state_bytes
from sagaz_core.storage.seals import sealed


def in_small_parts(monkeypatch):
    parts = {"_BACK": 2, "_LAST": 2, "_RUNS": 2, "_TIES": 2, "_EVENTS": 2, "_EVENTS_AT_ONCE": 3}
    for name, number in parts.items():
        monkeypatch.setattr(_redis_snapshots, name, number)
    monkeypatch.setattr(_redis_runs, "MOST_ENTRIES", 3)
    for module in (_redis_sagas, _redis_run_reading, _redis_snapshots):
        monkeypatch.setattr(module, "SHORT", 2)
    for name, number in {"_SNAPSHOTS": 2, "_EVENTS": 2, "_BYTES": 100, "_FEW": 1}.items():
        monkeypatch.setattr(_redis_parts, name, number)


class TestRedis(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, redis_url):
        storage = open_storage(redis_url)
        yield storage
        self.do(storage.close())


class TestRedisInSmallParts(TestRedis):
    """The same where a few entries are a long saga already."""

    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        in_small_parts(monkeypatch)


class TestFakeRedis(SnapshotStorageContract):
    """The same without a server, as quick tests of an application would have it."""

    shared = False

    @pytest.fixture
    def storage(self, monkeypatch):
        storage = open_storage("redis://localhost/0")
        server = fakeredis.FakeServer(version=(7,))

        async def connect():
            return FakeAsyncRedisConnection(server=server)

        monkeypatch.setattr(storage._connections._pools, "_make", lambda: Pool(10, connect))
        yield storage
        self.do(storage.close())


def keys(url):
    prefix = url.rpartition("prefix=")[2]
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        return {key.removeprefix(prefix.encode() + b":"): client.pttl(key) for key in client.scan_iter(f"{prefix}:*")}


def run(url, work):
    async def main():
        storage = open_storage(url)
        try:
            return await work(storage)
        finally:
            await storage.close()

    return asyncio.run(main())


def test_states_expire_with_the_last_snapshot_that_needs_them(redis_url):
    now = utc_now()
    days = [timedelta(days=1), timedelta(days=2), timedelta(days=3), None]

    async def write(storage):
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)]))
        for seq, kept in enumerate(days):
            base = None if seq in (0, 3) else 0
            until = None if kept is None else now + kept
            await storage.write(Batch("s", None, (), [a_snapshot("s", seq, base_seq=base, retention_until=until)]))

    run(redis_url, write)
    expiring = {key: pttl / 86_400_000 for key, pttl in keys(redis_url).items() if pttl > 0}
    assert {key: round(days) for key, days in expiring.items()} == {b"st:2:s": 3, b"st:3:s": 3, b"st:4:s": 3}


def test_states_that_the_server_let_go_are_not_served_and_are_pruned(redis_url):
    now = utc_now()

    async def write(storage):
        batch = Batch("s", a_saga("s"), (), [a_snapshot("s", 0, retention_until=now + timedelta(days=1))])
        await storage.write(batch)
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            (key,) = client.scan_iter(f"{redis_url.rpartition('prefix=')[2]}:st:*")
            client.delete(key)
        await storage.write(batch)  # a retry that comes late
        assert await storage.get_snapshot("s/0") is None
        assert await storage.latest_snapshot("s") is None
        assert await storage.prune(now + timedelta(days=2)) == 1
        assert await storage.get_saga("s") == a_saga("s")

    run(redis_url, write)


def test_a_deleted_saga_leaves_no_key(redis_url):
    async def write_and_delete(storage):
        for saga_id in ("s", "t"):
            summary = SagaSummary(saga_id, "order", 1, "failed", "charge", T0, {"customer": "1"})
            snapshots = [a_snapshot(saga_id, 0), a_snapshot(saga_id, 1, retention_until=utc_now() + timedelta(days=1))]
            await storage.write(Batch(saga_id, a_saga(saga_id), [an_event(saga_id, 0)], snapshots, summary))
            assert await storage.delete_saga(saga_id)

    run(redis_url, write_and_delete)
    assert keys(redis_url) == {}


def test_a_refused_batch_leaves_what_was_there(redis_url):
    def contents():
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            found = client.scan_iter(f"{redis_url.rpartition('prefix=')[2]}:*")
            of_type = {b"string": client.get, b"zset": lambda key: client.zrange(key, 0, -1, withscores=True)}
            of_type[b"hash"] = client.hgetall
            return {key: of_type[client.type(key)](key) for key in found}

    async def write(storage):
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)]))
        before = contents()
        other = Batch("s", a_saga("s", plan="another"), [an_event("s", 0, data=b"other")], [a_snapshot("s", 0)])
        with pytest.raises(DuplicateSagaError):
            await open_here(storage).write(other)
        assert contents() == before

    def open_here(storage):
        storage._known.clear()  # as another process, which knows nothing
        return storage

    run(redis_url, write)


def test_a_newer_schema_is_refused(redis_url):
    async def work(storage):
        assert await storage.upgrade() == 1
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            client.set(f"{redis_url.rpartition('prefix=')[2]}:version", 99)
        await storage.close()
        for call in (lambda: storage.get_saga("s"), lambda: storage.write(Batch("s", a_saga("s"))), storage.upgrade):
            with pytest.raises(SchemaError, match="has schema 99, this release reads up to 1: upgrade pytest-sagaz"):
                await call()

    run(redis_url, work)


AS_IT_GROWS_LONG = 1
"""A trip to read what is there, once: then all of it is put into runs."""


def test_a_saga_of_many_snapshots_is_still_appended_in_one_trip(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await storage.write(Batch("s", a_saga("s")))
        before = proxy.trips
        for seq in range(300):
            base = None if seq % 16 == 0 else seq - seq % 16
            await storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq, base_seq=base)]))
        assert proxy.trips - before == 300 + AS_IT_GROWS_LONG
        found = await storage.get_snapshot("s/299")
        assert len(found.bases) == 299 % 16

    run(proxy.url, work)
    proxy.close()


def listed_through(proxy, storage):
    """List the snapshots of saga `s`, and return them, and of each page the trips and bytes that it took."""

    async def work():
        found, costs, cursor = [], [], None
        while True:
            before = proxy.trips, proxy.answered
            page = await storage.list_snapshots("s", limit=100, cursor=cursor)
            found += page.items
            costs.append((proxy.trips - before[0], proxy.answered - before[1]))
            cursor = page.cursor
            if cursor is None:
                return found, costs

    return work()


def test_a_page_of_snapshots_is_read_without_the_others(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        snapshots, writer = [], FrameWriter()
        await storage.write(Batch("s", a_saga("s")))
        for seq in range(1200):
            snapshots.append(writer.frame(a_snapshot("s", seq), b"state %d" % seq))
            await storage.write(Batch("s", None, [an_event("s", seq)], snapshots[-1:]))
        found, costs = await listed_through(proxy, storage)
        assert [one._replace(bases=()) for one in found] == snapshots
        assert [state_bytes(one) for one in found] == [b"state %d" % seq for seq in range(1200)]
        assert {trips for trips, _ in costs} == {1}
        assert max(size for _, size in costs) < 1.4 * costs[0][1]

        # One that comes before others, which another process knew nothing of: from now on all is read and put in order.
        storage._known.clear()
        await storage.write(Batch("s", snapshots=[a_snapshot("s", 700, snapshot_id="s/late")]))
        again, costs = await listed_through(proxy, storage)
        assert [one.snapshot_id for one in again] == sorted(
            [*(one.snapshot_id for one in found), "s/late"],
            key=lambda name: (700 if name == "s/late" else int(name[2:]), name),
        )
        assert max(trips for trips, _ in costs) == 2

    run(proxy.url, work)
    proxy.close()


def test_pages_pass_over_what_has_expired_and_was_not_pruned(redis_url):
    async def work(storage):
        storage.clock = lambda: T0
        for seq in range(500):
            ends = T0 + timedelta(days=1 if seq < 450 else 3)
            await storage.write(Batch("s", None, (), [a_snapshot("s", seq, retention_until=ends)]))
        storage.clock = lambda: T0 + timedelta(days=2)
        first = await storage.list_snapshots("s", limit=20)
        rest = await storage.list_snapshots("s", limit=100, cursor=first.cursor)
        assert [one.seq for one in (*first.items, *rest.items)] == list(range(450, 500))
        assert rest.cursor is None

    run(redis_url, work)


LONG = 3_000


async def write_long(storage, clock=lambda seq: seq):
    """Write a saga of many entries, two events and a snapshot each, as an engine does."""
    writer = FrameWriter()
    await storage.write(Batch("s", a_saga("s")))
    batches = []
    for seq in range(0, LONG, 2):
        at = T0 + timedelta(seconds=clock(seq))
        events = [an_event("s", seq, at=at), an_event("s", seq + 1, at=at)]
        snapshot = a_snapshot("s", seq, created_at=at, step_name=f"step_{seq}", phase="before")
        batches.append(Batch("s", None, events, [writer.frame(snapshot, b"state %d" % seq)]))
    for batch in batches:
        await storage.write(batch)


def test_of_a_long_saga_only_what_is_asked_for_is_read(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await write_long(storage)
        seqs = [0, 1, 2, 30, 31, 1_500, 1_501, LONG - 2, LONG - 1, LONG + 5]
        for seq in seqs:
            right, until = min(seq - seq % 2, LONG - 2), T0 + timedelta(seconds=seq)
            for asked in ({"until": until}, {"max_seq": seq}, {"until": until, "max_seq": seq}):
                before = proxy.trips, proxy.answered
                found = await storage.latest_snapshot("s", **asked)
                assert (found.seq, state_bytes(found)) == (right, b"state %d" % right)
                assert proxy.trips - before[0] == 1
                assert proxy.answered - before[1] < 20_000
            before = proxy.trips, proxy.answered
            events = [event.seq async for event in storage.read_events("s", after_seq=right, until=until)]
            assert events == ([right + 1] if seq >= right else [])
            assert proxy.trips - before[0] == 1
            assert proxy.answered - before[1] < 20_000
        assert await storage.latest_snapshot("s", until=T0 - timedelta(seconds=1)) is None
        assert await storage.latest_snapshot("s", max_seq=-1) is None
        assert (await storage.latest_snapshot("s", max_seq=10**400)).seq == LONG - 2
        assert [event async for event in storage.read_events("s", after_seq=10**400)] == []
        assert [e.seq async for e in storage.read_events("s", after_seq=1_001)] == list(range(1_002, LONG))
        assert [e.seq async for e in storage.read_events("s")] == list(range(LONG))

    run(proxy.url, work)
    proxy.close()


@pytest.mark.parametrize("clock", [lambda seq: 0, lambda seq: seq // 100, lambda seq: -seq, lambda seq: seq % 700])
def test_a_long_saga_of_a_clock_that_stands_or_goes_back_is_read_right(redis_url, clock):
    async def work(storage):
        await write_long(storage, clock)
        for until in (-LONG, -1_001, -1, 0, 1, 7, 333, LONG):
            at = T0 + timedelta(seconds=until)
            right = max((seq for seq in range(0, LONG, 2) if clock(seq) <= until), default=None)
            found = await storage.latest_snapshot("s", until=at)
            assert (found and found.seq) == right
            assert found is None or state_bytes(found) == b"state %d" % right
            for after in (-1, 400, 1_111):
                events = [event.seq async for event in storage.read_events("s", after_seq=after, until=at)]
                assert events == list(range(after + 1, 0 if right is None else right + 2))

    run(redis_url, work)


async def asked_of_steps(storage):
    """Return what `write_long` wrote, as it is found by step, phase and time."""
    found = []
    for seq in (0, 2, 30, 1_500, LONG - 2):
        until = T0 + timedelta(seconds=seq + 1)
        for asked in ({"step": f"step_{seq}"}, {"step": f"step_{seq}", "phase": "before"}, {"phase": "before"}):
            for time in (None, until):
                one = await storage.latest_snapshot("s", **asked, until=time)
                right = seq if "step" in asked or time else LONG - 2
                assert (one.seq, state_bytes(one)) == (right, b"state %d" % right)
                found.append(one)
    none = [
        {"step": "step_1"},
        {"step": "step_0", "phase": "after"},
        {"phase": "final"},
        {"step": "step_8", "until": T0},
    ]
    for asked in none:
        assert await storage.latest_snapshot("s", **asked) is None
    return len(found) + len(none)


def test_the_latest_of_a_step_or_phase_is_one_trip_however_long_ago_it_was(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await write_long(storage)
        before = proxy.trips, proxy.answered
        number = await asked_of_steps(storage)
        assert proxy.trips - before[0] == number
        assert proxy.answered - before[1] < number * 10_000

    run(proxy.url, work)
    proxy.close()


def test_a_short_saga_has_no_runs_and_another_process_reads_the_latest_of_its_steps_in_one_trip(redis_url):
    proxy = Proxy(redis_url)

    def of_runs():
        return sorted({key[:2] for key in keys(redis_url) if key[:2] in (b"c:", b"i:", b"r:")})

    async def work(storage):
        for seq in range(SHORT):
            at = T0 + timedelta(seconds=seq)
            snapshot = a_snapshot("s", seq, step_name=f"step_{seq}", created_at=at)
            await storage.write(Batch("s", None if seq else a_saga("s"), snapshots=[snapshot]))
        assert of_runs() == []
        await storage.close()
        for stranger in (False, True):
            for until in (None, T0 + timedelta(seconds=SHORT)):
                if stranger:
                    storage._known.clear()
                await storage.get_snapshot("s/0")  # connected
                before = proxy.trips
                assert (await storage.latest_snapshot("s", step="step_1", until=until)).seq == 1
                assert await storage.latest_snapshot("s", step="none", until=until) is None
                assert proxy.trips - before == 2
        await storage.write(Batch("s", snapshots=[a_snapshot("s", SHORT)]))
        assert of_runs() == [b"c:", b"i:", b"r:"]

    run(proxy.url, work)
    proxy.close()


def test_several_keyframes_and_unfinished_runs_lead_to_the_latest(redis_url):
    """Of two processes, which write in turn and know nothing of each other's last snapshots."""

    async def work(storage):
        await storage.write(Batch("s", a_saga("s")))
        other, written = open_storage(redis_url), []
        writers = FrameWriter(), FrameWriter()
        for seq in range(40):
            turn = (seq // 3) % 2
            snapshot = a_snapshot("s", seq, step_name=f"step_{seq % 5}", created_at=T0 + timedelta(seconds=seq))
            written.append(writers[turn].frame(snapshot, b"state %d" % seq))
            await (storage, other)[turn].write(Batch("s", snapshots=written[-1:]))
            for step in range(5):
                right = max((s.seq for s in written if s.seq % 5 == step), default=None)
                for until in (None, T0 + timedelta(seconds=seq - 4)):
                    found = await storage.latest_snapshot("s", step=f"step_{step}", until=until)
                    if until is not None:
                        right = max((s.seq for s in written if s.seq % 5 == step and s.seq <= seq - 4), default=None)
                    assert (found and found.seq) == right
                    assert found is None or state_bytes(found) == b"state %d" % right
                    assert found == await storage.get_snapshot(f"s/{right}")
        await other.close()

    run(redis_url, work)


def test_a_step_whose_last_snapshots_have_expired_or_were_deleted_is_found_before_them(redis_url):
    async def work(storage):
        storage.clock = lambda: T0
        for seq in range(100):
            ends = T0 + timedelta(days=1) if seq % 2 else None
            await storage.write(Batch("s", snapshots=[a_snapshot("s", seq, step_name="a", retention_until=ends)]))
        await storage.write(Batch("s", snapshots=[a_snapshot("s", 100, step_name="b", retention_until=ends)]))
        storage.clock = lambda: T0 + timedelta(days=2)
        for _ in ("expired", "pruned"):
            assert (await storage.latest_snapshot("s", step="a")).seq == 98
            assert await storage.latest_snapshot("s", step="b") is None
            await storage.prune(storage.clock())
        assert await storage.delete_snapshots("s", below_seq=90) == 45
        assert (await storage.latest_snapshot("s", step="a", until=T0 + timedelta(days=1))).seq == 98
        assert await storage.delete_snapshots("s", below_seq=99) == 5
        assert await storage.latest_snapshot("s", step="a") is None
        assert [key for key in keys(redis_url) if key[:2] in (b"r:", b"i:", b"g:", b"st", b"id")] == []

    run(redis_url, work)


def test_a_saga_of_which_only_so_many_snapshots_are_kept_is_still_appended_in_one_trip(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        writer = FrameWriter()
        await storage.write(Batch("s", a_saga("s")))
        for seq in range(270):
            before = proxy.trips
            snapshot = writer.frame(a_snapshot("s", seq, step_name=f"step_{seq % 7}"), b"state %d" % seq)
            await storage.write(Batch("s", None, [an_event("s", seq)], [snapshot]))
            assert proxy.trips - before == 1 + (seq == SHORT - 1) * AS_IT_GROWS_LONG
            await storage.delete_snapshots("s", below_seq=seq - 9)
            page = await storage.list_snapshots("s")
            assert [(one.seq, state_bytes(one)) for one in page.items] == [
                (n, b"state %d" % n) for n in range(max(0, seq - 9), seq + 1)
            ]
            found = await storage.latest_snapshot("s", step=f"step_{(seq - 3) % 7}")
            assert (found and found.seq) == (seq - 3 if seq >= 3 else None)

    run(proxy.url, work)
    proxy.close()


def of_an_earlier_release(redis_url, indexed_up_to=0):
    """Take what such a release does not write away, or all of it behind an entry."""
    prefix = redis_url.rpartition("prefix=")[2]
    with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
        if indexed_up_to:
            client.set(f"{prefix}:c:s", indexed_up_to)
            return
        client.delete(*(key for kind in "cri" for key in client.scan_iter(f"{prefix}:{kind}:*")))
        for key in client.scan_iter(f"{prefix}:log:*"):
            saga_id, events, headers = unpack_log(client.get(key), "s")
            client.set(key, seal(pack([saga_id, events, [header[:12] for header in headers]])))


@pytest.mark.parametrize("indexed_up_to", [0, 700])
def test_what_an_earlier_release_wrote_is_found_by_step_and_put_into_runs_by_the_next_write(redis_url, indexed_up_to):
    proxy = Proxy(redis_url)

    async def trips(work):
        before = proxy.trips
        await work
        return proxy.trips - before

    async def work(storage):
        await write_long(storage)
        of_an_earlier_release(redis_url, indexed_up_to)
        await storage.close()
        storage._known.clear()  # as another process, which knows nothing
        questions = await asked_of_steps(storage)
        assert await trips(asked_of_steps(storage)) > questions
        await storage.write(Batch("s", events=[an_event("s", LONG)]))
        assert await trips(asked_of_steps(storage)) == questions
        await storage.delete_saga("s")

    run(proxy.url, work)
    proxy.close()
    assert keys(redis_url) == {}


def test_an_upgrade_puts_what_an_earlier_release_wrote_into_runs(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await write_long(storage)
        of_an_earlier_release(redis_url)
        await storage.write(Batch("t", a_saga("t"), snapshots=[a_snapshot("t", 0)]))
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            prefix = redis_url.rpartition("prefix=")[2]
            client.set(f"{prefix}:log:1:t", b"damaged")
            client.delete(f"{prefix}:c:t")
        stores = [open_storage(redis_url) for _ in range(5)]
        await asyncio.gather(*(store.upgrade() for store in stores))
        for store in stores:
            await store.close()
        before = proxy.trips
        assert await asked_of_steps(storage) == proxy.trips - before

    run(proxy.url, work)
    proxy.close()


def test_a_refused_write_keeps_no_other_from_being_found(redis_url):
    def batch(seq, status, second, data=b"data"):
        at = T0 + timedelta(seconds=second)
        record = None if seq else a_saga("s")
        events, snapshots = [an_event("s", seq, at=at, data=data)], [a_snapshot("s", seq, created_at=at)]
        return Batch("s", record, events, snapshots, SagaSummary("s", "order", seq, status))

    async def work(storage):
        late = open_storage(redis_url)
        await storage.write(batch(0, "executing", 0))
        await late.write(batch(0, "executing", 0))
        await storage.write(batch(1, "executing", 10))
        before = keys(redis_url)
        with pytest.raises(DuplicateSagaError):
            await late.write(batch(1, "failed", 1_000, b"other"))
        with pytest.raises(DuplicateSagaError):
            await late.write(Batch("t", a_saga("t"), snapshots=[a_snapshot("t", 5, snapshot_id="s/0")]))
        assert keys(redis_url) == before
        assert [one.saga_id for one in (await storage.find_sagas(status="executing")).items] == ["s"]
        assert (await storage.latest_snapshot("s", until=T0 + timedelta(seconds=20))).seq == 1
        await late.close()

    run(redis_url, work)


def test_a_large_batch_is_stored_in_entries_of_bounded_size(redis_url):
    """As `sagaz store copy` writes them; all of a batch is there or nothing."""
    proxy = Proxy(redis_url)

    async def work(storage):
        writer = FrameWriter()
        snapshots = [
            writer.frame(a_snapshot("s", seq, step_name=f"step_{seq}", snapshot_id=f"s/{seq}"), b"state %d" % seq)
            for seq in range(500)
        ]
        events = [an_event("s", seq) for seq in range(500)]
        await storage.write(Batch("s", a_saga("s"), events, snapshots, SagaSummary("s", "order", 499, "executing")))
        assert len([key for key in keys(redis_url) if key.startswith(b"log:")]) == 32
        for seq in (0, 1, 250, 499):
            for read in (storage.get_snapshot(f"s/{seq}"), storage.latest_snapshot("s", step=f"step_{seq}")):
                before = proxy.trips, proxy.answered
                assert state_bytes(await read) == b"state %d" % seq
                assert proxy.trips - before[0] == 1
                assert proxy.answered - before[1] < 8_000
        assert [event.seq async for event in storage.read_events("s")] == list(range(500))
        assert (await storage.find_sagas(status="executing")).items[0].seq == 499
        other = [an_event("t", 0), *(event._replace(saga_id="t") for event in events[1:])]
        taken = [one._replace(saga_id="t", snapshot_id=f"t/{one.seq}") for one in snapshots]
        taken[400] = taken[400]._replace(snapshot_id="s/400")
        there = keys(redis_url)
        with pytest.raises(DuplicateSagaError):
            await storage.write(Batch("t", a_saga("t"), other, taken))
        assert keys(redis_url) == there

    run(proxy.url, work)
    proxy.close()


def test_what_was_copied_is_read_as_what_was_written_at_first(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        source = open_storage("memory://")
        for seq in range(0, LONG, 2):
            at = T0 + timedelta(seconds=seq)
            events = [sealed("s", seq + n, at, "StepStarted", None, b"data") for n in range(2)]
            snapshot = a_snapshot("s", seq, created_at=at, step_name=f"step_{seq}", phase="before")
            await source.write(
                Batch("s", None if seq else a_saga("s"), events, [standalone(snapshot, b"state %d" % seq)])
            )
        await copy_store(source, storage)
        before = proxy.trips, proxy.answered
        number = await asked_of_steps(storage)
        for seq in (0, 1_001, LONG):
            assert (await storage.latest_snapshot("s", until=T0 + timedelta(seconds=seq))).seq == min(
                seq - seq % 2, LONG - 2
            )
            assert (await storage.get_snapshot(f"s/{min(seq - seq % 2, LONG - 2)}")) is not None
        assert proxy.trips - before[0] == number + 6
        assert proxy.answered - before[1] < (number + 6) * 10_000

    run(proxy.url, work)
    proxy.close()


def test_what_an_earlier_release_wrote_has_no_indices_and_is_read(redis_url):
    prefix = redis_url.rpartition("prefix=")[2]

    async def work(storage):
        await write_long(storage)
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            assert client.delete(f"{prefix}:s:s", f"{prefix}:t:s") == 2
        await storage.write(Batch("s", None, [an_event("s", LONG)], [a_snapshot("s", LONG)]))
        for seq in (0, 31, LONG - 1, LONG):
            until = T0 + timedelta(seconds=seq)
            assert (await storage.latest_snapshot("s", until=until)).seq == seq - seq % 2
            assert (await storage.latest_snapshot("s", max_seq=seq)).seq == seq - seq % 2
            events = [event.seq async for event in storage.read_events("s", after_seq=17, until=until)]
            assert events == list(range(18, seq + 1))

    run(redis_url, work)


@pytest.fixture
def as_user(redis_url, redis_server_url):
    """Return the store's URL for a user with these rights, who is gone afterwards."""
    name = f"user-{redis_url.rpartition('prefix=')[2]}"

    def made(*rights):
        with redis.Redis.from_url(redis_server_url) as client:
            client.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rights)
        parts = urlsplit(redis_url)
        return parts._replace(netloc=f"{name}:secret@{parts.netloc}").geturl()

    yield made
    with redis.Redis.from_url(redis_server_url) as client:
        client.acl_deluser(name)


def test_a_user_that_may_only_read_reads(redis_url, as_user):
    async def work(storage):
        await write_long(storage)
        only_reads = open_storage(as_user("%R~*", "+@read", "+@connection"))
        found = await only_reads.latest_snapshot("s", until=T0 + timedelta(seconds=1_001))
        assert state_bytes(found) == b"state 1000"
        assert [e.seq async for e in only_reads.read_events("s", after_seq=1_000, until=found.created_at)] == [1_001]
        assert [e.seq async for e in only_reads.read_events("s", after_seq=LONG - 3)] == [LONG - 2, LONG - 1]
        assert [record.saga_id for record in (await only_reads.list_sagas()).items] == ["s"]
        assert await asked_of_steps(only_reads) == 34
        with pytest.raises(StoreUnavailableError, match="may not do that"):
            await only_reads.write(Batch("t", a_saga("t")))
        await only_reads.close()

    run(redis_url, work)


def test_a_user_with_the_rights_that_the_docs_name_may_do_all(redis_url, as_user):
    async def work(storage):
        await write_long(storage)
        found = await storage.latest_snapshot("s", until=T0 + timedelta(seconds=1_001))
        assert state_bytes(found) == b"state 1000"
        assert await asked_of_steps(storage) == 34
        await storage.log_replay(a_replay("r", "s"))
        assert len(await storage.list_replays("s")) == 1
        await storage.upgrade()
        assert (await storage.info()).sagas == 1
        assert await storage.prune(T0) == 0
        assert await storage.delete_saga("s")

    keys = f"~{redis_url.rpartition('prefix=')[2]}:*"
    run(as_user(keys, "%R~*", "+@read", "+@write", "+@connection", "+@transaction"), work)


def test_a_user_that_may_read_the_stores_keys_alone_is_told_of_it(redis_url, as_user):
    async def work(storage):
        for asked in (storage.list_sagas(), storage.list_snapshots("s"), storage.info()):
            with pytest.raises(StoreUnavailableError, match="may not read all keys, as SORT has to: give it %R~"):
                await asked

    run(redis_url, lambda storage: storage.write(Batch("s", a_saga("s"), [], [a_snapshot("s", 0)])))
    run(as_user(f"~{redis_url.rpartition('prefix=')[2]}:*", "+@all"), work)


def test_a_replay_of_a_long_saga_reads_its_last_entries(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await write_long(storage)
        last, first = await storage.read_checkpoints([("s", f"step_{LONG - 10}"), ("s", "step_4")])
        assert [(one.before.seq, one.last_seq) for one in (last, first)] == [(LONG - 10, LONG - 2), (4, LONG - 2)]
        assert [len(one.events) for one in (last, first)] == [9, LONG - 5]
        before = proxy.trips, proxy.answered
        assert (await storage.read_checkpoints([("s", f"step_{LONG - 10}")]))[0] == last
        assert proxy.trips - before[0] == 1
        assert proxy.answered - before[1] < 60_000

    run(proxy.url, work)
    proxy.close()
