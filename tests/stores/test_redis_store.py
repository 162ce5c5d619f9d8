"""The Redis store, on a real server."""

import asyncio
from datetime import timedelta

import fakeredis
import pytest
import redis
from fakeredis import FakeAsyncRedisConnection
from proxy import Proxy

from sagaz_core.clock import utc_now
from sagaz_core.errors import DuplicateSagaError, SchemaError
from sagaz_core.storage import Batch, SagaSummary, open_storage
from sagaz_core.storage._network import Pool
from sagaz_core.storage.contract import T0, SnapshotStorageContract, a_saga, a_snapshot, an_event
from sagaz_core.storage.frames import FrameWriter, state_bytes


class TestRedis(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, redis_url):
        storage = open_storage(redis_url)
        yield storage
        self.do(storage.close())


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


def test_a_saga_of_many_snapshots_is_still_appended_in_one_trip(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await storage.write(Batch("s", a_saga("s")))
        before = proxy.trips
        for seq in range(300):
            base = None if seq % 16 == 0 else seq - seq % 16
            await storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq, base_seq=base)]))
        assert proxy.trips - before == 300
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
